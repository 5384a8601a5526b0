"""What the tests of the multi-tensor ops share."""

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vtkernels._core import testing
from vtkernels._core.op import OPS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
every_backend = pytest.mark.parametrize("backend", OPS["sam_perturb_"].backend_names)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def call(op: str, backend: str, *args, **kwargs):
    """The op on tensors of the CPU, on a GPU where the backend needs one; if it cannot run, the test is skipped with its reason."""
    arguments = OPS[op].arguments(*args, **kwargs)
    arguments.pop("backend")
    reason = testing.why_not(op, arguments, backend)
    if reason is None:
        return OPS[op].public(**arguments, backend=backend)
    if torch.cuda.is_available():
        there = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cuda"), arguments)
        reason = testing.why_not(op, there, backend)
        if reason is None:
            result = OPS[op].public(**there, backend=backend)
            # everything, also what should not have changed
            for tensor, copy in zip(testing.tensors_of(arguments).values(), testing.tensors_of(there).values(), strict=True):
                tensor.copy_(copy)
            return result.cpu() if isinstance(result, Tensor) else None
    pytest.skip(f"{backend}: {reason}")


def bits(tensors: list[Tensor]) -> list[Tensor]:
    """Copies to compare with torch.equal, in which a NaN equals itself."""
    return [tensor.clone().contiguous().view(-1).view(torch.uint8) for tensor in tensors]


def assert_unchanged(tensors: list[Tensor], before: list[Tensor]) -> None:
    for i, (found, expected) in enumerate(zip(bits(tensors), before, strict=True)):
        assert torch.equal(found, expected), f"tensor {i} changed"
