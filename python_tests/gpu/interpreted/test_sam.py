"""The Triton kernels of the multi-tensor ops, interpreted, under the ops' contract; and what only a closer look at them shows."""

import copy
import os

import pytest
import torch
from torch import Tensor

import vtkernels as vt
from vtkernels._core import testing
from vtkernels._core.op import OPS
from vtkernels._core.testing import Case
from vtkernels.ops.sam import pointer_table

FAMILY = tuple(name for name, op in OPS.items() if op.package == "vtkernels.ops.sam")
FULL = os.environ.get("CI") == "true" or os.environ.get("VTKERNELS_FULL") == "1"
# beside the representative cases, those that take a path of their own through the kernels
QUICK = (
    "no_elements", "chunk_edges", "large", "flat_views", "channels_last", "gradients_with_gaps", "zero_gradients", "adaptive_per_tensor",
    "grad_scale_adaptive", "inf_found_before", "square_sum_given_scaled", "decoupled_nesterov", "rates_per_tensor", "steps_per_tensor", "beta1_0", "maximize",
    "inf_found_without_backups",
)  # fmt: skip


def _rows() -> list:
    rows = []
    for op in FAMILY:
        for case in testing.cases(op):
            dtypes = (torch.float32, torch.bfloat16, torch.float16) if FULL or case.name == "mixed" else (torch.float32,)
            if FULL or case.representative or case.name in QUICK:
                rows += [pytest.param(op, case, dtype, id=f"{op}-{case.name}-{str(dtype).removeprefix('torch.')}") for dtype in dtypes]
    return rows


@pytest.mark.parametrize(("op", "case", "dtype"), _rows())
def test_results_are_within_the_tolerance_rule(op: str, case: Case, dtype: torch.dtype):
    reason = testing.why_not(op, case.inputs(dtype), "triton")
    if reason is not None:
        pytest.skip(reason)
    with testing.poisoned_memory():
        verdicts = testing.judge(op, "triton", case, dtype)
    assert all(verdict.passed for verdict in verdicts), "\n".join(str(verdict) for verdict in verdicts if not verdict.passed)


def _memory_of(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


@pytest.mark.parametrize("op", FAMILY)
def test_nothing_beside_the_tensors_is_written(op: str):
    """Views into one buffer, with a number between neighbours that belongs to nobody."""
    inputs = next(case for case in testing.cases(op) if case.name == "flat_views").inputs(torch.float32)
    before, tensors = testing.tensors_of(copy.deepcopy(inputs)), testing.tensors_of(inputs)
    testing.run_in_place(op, inputs, "triton")
    for name, tensor in testing.mutated(op, inputs).items():
        tensor.copy_(before[name])
    for name, tensor in tensors.items():
        assert torch.equal(_memory_of(tensor), _memory_of(before[name])), f"{name}, or something around it, was written"


@pytest.mark.parametrize("op", FAMILY)
def test_repeated_calls_agree_to_the_bit(op: str):
    inputs = next(case for case in testing.cases(op) if case.name == "large").inputs(torch.float32)
    with testing.poisoned_memory():
        first, second = (testing.run_case(op, inputs, "triton") for _ in range(2))
    for quantity, value in first.items():
        assert torch.equal(value, second[quantity]), quantity


def _lists(*sizes: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = testing.generator_for(f"{sizes}")
    params, grads = ([torch.randn(size, generator=generator) for size in sizes] for _ in range(2))
    return [p.to(dtype) for p in params], [(g * scale).to(dtype) for g in grads], [torch.full((size,), torch.nan, dtype=dtype) for size in sizes]


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-15, 1e15, 1e30])
@pytest.mark.parametrize("adaptive", [False, True])
def test_no_gradient_is_too_large_or_too_small_for_the_norm(scale: float, adaptive: bool):
    params, grads, backups = _lists(5, 1500, 9000, scale=scale)
    expected, _, _ = _lists(5, 1500, 9000)
    arguments = {"rho": 100.0, "adaptive": adaptive, "eps": 0.0}
    norm = vt.sam_perturb_(params, grads, backups, **arguments, backend="triton")
    truth = vt.sam_perturb_(expected, grads, [torch.empty_like(p) for p in expected], **arguments, backend="reference")
    torch.testing.assert_close(norm, truth, rtol=1e-6, atol=0.0)
    for found, wanted in zip(params, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", [(0, 0), (1, 8191), (1, 8192), (1, 8999)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_that_is_not_finite_stops_all(value: float, place: tuple[int, int], dtype: torch.dtype):
    params, grads, backups = _lists(5, 9000, dtype=dtype)
    grads[place[0]][place[1]] = value
    # also to be saved to the bit: what no arithmetic survives
    params[1][3], params[1][4] = torch.nan, torch.inf
    before, found_inf = copy.deepcopy(params), torch.zeros(1)
    norm = vt.sam_perturb_(params, grads, backups, rho=1.0, found_inf=found_inf, backend="triton")
    assert found_inf.item() == 1.0 and not norm.isfinite()
    for old, param, backup in zip(before, params, backups, strict=True):
        integer = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(param.view(integer), old.view(integer)) and torch.equal(backup.view(integer), old.view(integer))


def test_perturb_and_restore_is_the_identity_to_the_bit():
    params, grads, backups = _lists(3, 0, 1024, 8193, dtype=torch.bfloat16)
    before = copy.deepcopy(params)
    vt.sam_perturb_(params, grads, backups, rho=50.0, backend="triton")
    assert not torch.equal(params[3], before[3])
    vt.sam_restore_(params, backups, backend="triton")
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


def test_eps_of_zero_keeps_the_smallest_second_moment():
    """A subnormal v has a root, which a flush to zero would turn into a division by zero."""
    one = [torch.zeros(1)], [torch.full((1,), 1e-19)], [torch.zeros(1)], [torch.zeros(1)]
    vt.adamw_step_(*one, [torch.zeros(1)], lr=0.5, eps=0.0, weight_decay=0.0, backend="triton")
    torch.testing.assert_close(one[0][0], torch.tensor([-0.5]), rtol=1e-3, atol=0.0)


def test_a_table_is_made_again_only_for_other_tensors_or_numbers(monkeypatch: pytest.MonkeyPatch):
    made, upload = [], pointer_table.upload
    monkeypatch.setattr(pointer_table, "upload", lambda *arguments: made.append(1) or upload(*arguments))
    params, grads, backups = _lists(3, 70, 9000)

    def count(call) -> int:
        made.clear()
        call()
        return len(made)

    assert count(lambda: vt.sam_perturb_(params, grads, backups, rho=0.5, backend="triton")) == 1
    assert count(lambda: vt.sam_perturb_(params, grads, backups, rho=0.5, backend="triton")) == 0
    assert count(lambda: vt.sam_perturb_(params, grads, backups, rho=0.6, backend="triton")) == 1
    fresh = [grad.clone() for grad in grads]
    assert count(lambda: vt.sam_perturb_(params, fresh, backups, rho=0.6, backend="triton")) == 1
    # of the same addresses, but another length
    shorter = [[tensor[:2] for tensor in tensors] for tensors in (params, fresh, backups)]
    assert count(lambda: vt.sam_perturb_(*shorter, rho=0.6, backend="triton")) == 1
