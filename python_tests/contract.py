"""What the contract's tests share: the rows of op, backend and case, and inputs for one of them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from vtkernels._core import gpu, testing
from vtkernels._core.op import OPS
from vtkernels._core.testing import Case, Inputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DIFFERENTIABLE = [op for op in OPS if testing.has_gradients(op)]
IN_PLACE = [op for op in OPS if not testing.has_gradients(op)]

on_every_device = pytest.mark.parametrize("device", ["cpu"] + ["cuda"] * torch.cuda.is_available())


def in_dtypes(*dtypes: torch.dtype) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


def every_case(ops: list[str], representative: bool = False, judge: bool = True) -> pytest.MarkDecorator:
    """(op, backend, case) of everything that may run here, or of the representative cases; without the judge, also without the reference."""
    rows = [(op, backend, case) for op, case in _chosen(ops, representative) for backend in _backends(op) if judge or backend != "reference"]
    return pytest.mark.parametrize(("op", "backend", "case"), [pytest.param(*row, id=f"{row[0]}-{row[1]}-{row[2].name}") for row in rows])


def representative_cases(ops: list[str]) -> pytest.MarkDecorator:
    return every_case(ops, representative=True)


def representative_cases_of_any_backend(ops: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("op", "case"), [pytest.param(op, case, id=f"{op}-{case.name}") for op, case in _chosen(ops, True)])


def _backends(op: str) -> list[str]:
    """Those of GPUs are left out where there is none: their tests without one are in gpu/."""
    absent = set() if torch.cuda.is_available() else {"cuda"} if gpu.interpreted() else {"triton", "cuda"}
    return [name for name in OPS[op].backend_names if name not in absent]


def _chosen(ops: list[str], representative: bool) -> list[tuple[str, Case]]:
    return [(op, case) for op in ops for case in testing.cases(op) if case.representative or not representative]


def inputs_for(op: str, backend: str, case: Case, device: str, dtype: torch.dtype = torch.float32) -> Inputs:
    """The case's inputs, if the backend can run them; else the test is skipped with its reason."""
    inputs = case.inputs(dtype, device)
    reason = testing.why_not(op, inputs, backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    return inputs


def assert_same(found: testing.Outcome, expected: testing.Outcome) -> None:
    """Equal to the bit."""
    for name, value in expected.items():
        assert torch.equal(found[name], value), f"{name} differs by up to {float((found[name] - value).abs().max())}"


def assert_within_budget(verdicts: list[testing.Verdict]) -> None:
    assert all(verdict.passed for verdict in verdicts), "\n".join(str(verdict) for verdict in verdicts if not verdict.passed)


@contextlib.contextmanager
def default_backend(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTKERNELS_BACKEND", name)
        yield


def as_function(op: str, inputs: Inputs, backend: str) -> Callable[[dict[str, Any]], Any]:
    """The public function of its tensors and lists of tensors alone, everything else bound."""
    rest = {name: value for name, value in inputs.items() if name not in tensor_arguments(inputs)}
    return lambda tensors: OPS[op].public(**tensors, **rest, backend=backend)


def tensor_arguments(inputs: Inputs) -> dict[str, Any]:
    """The arguments that are floating tensors, or lists of tensors."""
    lists = {name: value for name, value in inputs.items() if isinstance(value, list) and any(isinstance(one, torch.Tensor) for one in value)}
    return testing.differentiable(inputs) | lists
