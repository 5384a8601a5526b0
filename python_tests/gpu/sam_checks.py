"""What the tests of the multi-tensor GPU kernels share, however these are run without a GPU: `backend` is "triton" or "cuda"."""

import copy
import os

import pytest
import torch
from torch import Tensor

import vtkernels as vt
from vtkernels._core import testing
from vtkernels._core.op import OPS
from vtkernels._core.testing import Case

FAMILY = tuple(name for name, op in OPS.items() if op.package == "vtkernels.ops.sam")
FULL = os.environ.get("CI") == "true" or os.environ.get("VTKERNELS_FULL") == "1"
# beside the representative cases, those that take a path of their own through the kernels
QUICK = (
    "no_elements", "chunk_edges", "large", "flat_views", "channels_last", "gradients_with_gaps", "zero_gradients", "adaptive_per_tensor",
    "grad_scale_adaptive", "inf_found_before", "square_sum_given_scaled", "decoupled_nesterov", "rates_per_tensor", "steps_per_tensor", "beta1_0", "maximize",
    "inf_found_without_backups",
)  # fmt: skip

every_op = pytest.mark.parametrize("op", FAMILY)


def contract_rows() -> list:
    rows = []
    for op in FAMILY:
        for case in testing.cases(op):
            quick = case.representative or case.name in QUICK
            # a kernel's paths are those of float32 behind other loads and stores: those of their own are enough for half precision
            dtypes = (torch.float32, torch.bfloat16, torch.float16) if FULL and quick or case.name == "mixed" else (torch.float32,)
            if FULL or quick:
                rows += [pytest.param(op, case, dtype, id=f"{op}-{case.name}-{str(dtype).removeprefix('torch.')}") for dtype in dtypes]
    return rows


def check_tolerance_rule(backend: str, op: str, case: Case, dtype: torch.dtype) -> None:
    reason = testing.why_not(op, case.inputs(dtype), backend)
    if reason is not None:
        pytest.skip(reason)
    with testing.poisoned_memory():
        verdicts = testing.judge(op, backend, case, dtype)
    assert all(verdict.passed for verdict in verdicts), "\n".join(str(verdict) for verdict in verdicts if not verdict.passed)


def check_neighbours(backend: str, op: str) -> None:
    """Views into one buffer, with a number between neighbours that belongs to nobody: only the views may change."""
    inputs = _case(op, "flat_views").inputs(torch.float32)
    before, tensors = testing.tensors_of(copy.deepcopy(inputs)), testing.tensors_of(inputs)
    testing.run_in_place(op, inputs, backend)
    for name, tensor in testing.mutated(op, inputs).items():
        tensor.copy_(before[name])
    for name, tensor in tensors.items():
        assert torch.equal(_memory_of(tensor), _memory_of(before[name])), f"{name}, or something around it, was written"


def check_repeatable(backend: str, op: str) -> None:
    inputs = _case(op, "large").inputs(torch.float32)
    with testing.poisoned_memory():
        first, second = (testing.run_case(op, inputs, backend) for _ in range(2))
    for quantity, value in first.items():
        assert torch.equal(value, second[quantity]), quantity


def lists(*sizes: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Parameters, gradients of some scale, and backups that hold nothing yet."""
    generator = testing.generator_for(f"{sizes}")
    params, grads = ([torch.randn(size, generator=generator) for size in sizes] for _ in range(2))
    return [p.to(dtype) for p in params], [(g * scale).to(dtype) for g in grads], [torch.full((size,), torch.nan, dtype=dtype) for size in sizes]


def check_scale(backend: str, scale: float, adaptive: bool) -> None:
    """No gradient is too large or too small for the norm."""
    params, grads, backups = lists(5, 1500, 9000, scale=scale)
    expected, _, _ = lists(5, 1500, 9000)
    arguments = {"rho": 100.0, "adaptive": adaptive, "eps": 0.0}
    norm = vt.sam_perturb_(params, grads, backups, **arguments, backend=backend)
    truth = vt.sam_perturb_(expected, grads, [torch.empty_like(p) for p in expected], **arguments, backend="reference")
    torch.testing.assert_close(norm, truth, rtol=1e-6, atol=0.0)
    for found, wanted in zip(params, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def check_not_finite(backend: str, value: float, place: tuple[int, int], dtype: torch.dtype) -> None:
    """One number that is not finite stops all."""
    params, grads, backups = lists(5, 9000, dtype=dtype)
    grads[place[0]][place[1]] = value
    # also to be saved to the bit: what no arithmetic survives
    params[1][3], params[1][4] = torch.nan, torch.inf
    before, found_inf = copy.deepcopy(params), torch.zeros(1)
    norm = vt.sam_perturb_(params, grads, backups, rho=1.0, found_inf=found_inf, backend=backend)
    assert found_inf.item() == 1.0 and not norm.isfinite()
    for old, param, backup in zip(before, params, backups, strict=True):
        integer = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(param.view(integer), old.view(integer)) and torch.equal(backup.view(integer), old.view(integer))


def check_identity(backend: str) -> None:
    """Perturb and restore change no bit."""
    params, grads, backups = lists(3, 0, 1024, 8193, dtype=torch.bfloat16)
    before = copy.deepcopy(params)
    vt.sam_perturb_(params, grads, backups, rho=50.0, backend=backend)
    assert not torch.equal(params[3], before[3])
    vt.sam_restore_(params, backups, backend=backend)
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


def check_subnormal_moment(backend: str) -> None:
    """A subnormal v has a root, which a flush to zero would turn into a division by zero where eps is 0."""
    one = [torch.zeros(1)], [torch.full((1,), 1e-19)], [torch.zeros(1)], [torch.zeros(1)]
    vt.adamw_step_(*one, [torch.zeros(1)], lr=0.5, eps=0.0, weight_decay=0.0, backend=backend)
    torch.testing.assert_close(one[0][0], torch.tensor([-0.5]), rtol=1e-3, atol=0.0)


not_finite = pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
places = pytest.mark.parametrize("place", [(0, 0), (1, 8191), (1, 8192), (1, 8999)])
scales = pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-15, 1e15, 1e30])


def _case(op: str, name: str) -> Case:
    return next(case for case in testing.cases(op) if case.name == name)


def _memory_of(tensor: Tensor) -> Tensor:
    """All bytes of the buffer a tensor lies in, also those that do not belong to it."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
