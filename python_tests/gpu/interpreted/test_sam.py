"""The Triton kernels of the multi-tensor ops, interpreted, under the ops' contract; and what only a closer look at them shows."""

import pytest
import torch

import vtkernels as vt
from python_tests.gpu import sam_checks as checks
from vtkernels._core.testing import Case
from vtkernels.ops.sam import pointer_table


@pytest.mark.parametrize(("op", "case", "dtype"), checks.contract_rows())
def test_results_are_within_the_tolerance_rule(op: str, case: Case, dtype: torch.dtype):
    checks.check_tolerance_rule("triton", op, case, dtype)


@checks.every_op
def test_nothing_beside_the_tensors_is_written(op: str):
    checks.check_neighbours("triton", op)


@checks.every_op
def test_repeated_calls_agree_to_the_bit(op: str):
    checks.check_repeatable("triton", op)


@checks.scales
@pytest.mark.parametrize("adaptive", [False, True])
def test_no_gradient_is_too_large_or_too_small_for_the_norm(scale: float, adaptive: bool):
    checks.check_scale("triton", scale, adaptive)


@checks.not_finite
@checks.places
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_that_is_not_finite_stops_all(value: float, place: tuple[int, int], dtype: torch.dtype):
    checks.check_not_finite("triton", value, place, dtype)


def test_perturb_and_restore_is_the_identity_to_the_bit():
    checks.check_identity("triton")


def test_eps_of_zero_keeps_the_smallest_second_moment():
    checks.check_subnormal_moment("triton")


def test_a_table_is_made_again_only_for_other_tensors_or_numbers(monkeypatch: pytest.MonkeyPatch):
    made, upload = [], pointer_table.upload
    monkeypatch.setattr(pointer_table, "upload", lambda *arguments: made.append(1) or upload(*arguments))
    params, grads, backups = checks.lists(3, 70, 9000)

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
