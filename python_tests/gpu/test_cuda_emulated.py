"""The CUDA kernels of the multi-tensor ops, emulated on the CPU, under the ops' contract."""

import ctypes
import dataclasses
from pathlib import Path

import pytest
import torch

import vtkernels as vt
from python_tests.gpu import sam_checks as checks
from python_tests.gpu.emulated import compile_emulation, native_ops
from vtkernels._core.op import OPS
from vtkernels._core.testing import Case
from vtkernels.ops.sam import cuda
from vtkernels.ops.sam.common import why_not_flat


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    return compile_emulation("sam", tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="module")
def emulated(library: Path) -> torch._ops._OpNamespace:
    with native_ops("sam", library) as ops:
        yield ops


@pytest.fixture(autouse=True)
def on_the_cpu(emulated, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.ops, "vtkernels_native", emulated, raising=False)
    for name in checks.FAMILY:
        backend = OPS[name].backend("cuda")
        monkeypatch.setitem(OPS[name]._loaded, "cuda", dataclasses.replace(backend, why_not=lambda phase, call: why_not_flat(call)))


@pytest.mark.parametrize(("op", "case", "dtype"), checks.contract_rows())
def test_results_are_within_the_tolerance_rule(op: str, case: Case, dtype: torch.dtype):
    checks.check_tolerance_rule("cuda", op, case, dtype)


@checks.every_op
def test_nothing_beside_the_tensors_is_written(op: str):
    checks.check_neighbours("cuda", op)


@checks.every_op
def test_repeated_calls_agree_to_the_bit(op: str):
    checks.check_repeatable("cuda", op)


@checks.scales
@pytest.mark.parametrize("adaptive", [False, True])
def test_no_gradient_is_too_large_or_too_small_for_the_norm(scale: float, adaptive: bool):
    checks.check_scale("cuda", scale, adaptive)


@checks.not_finite
@checks.places
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_that_is_not_finite_stops_all(value: float, place: tuple[int, int], dtype: torch.dtype):
    checks.check_not_finite("cuda", value, place, dtype)


def test_perturb_and_restore_is_the_identity_to_the_bit():
    checks.check_identity("cuda")


def test_eps_of_zero_keeps_the_smallest_second_moment():
    checks.check_subnormal_moment("cuda")


@pytest.mark.parametrize("tensors", [1, 500])
def test_launches_do_not_depend_on_the_number_of_tensors(library: Path, tensors: int):
    emulated_launches = ctypes.CDLL(str(library)).emulated_launches
    emulated_launches.restype = ctypes.c_int64
    params, grads, backups = checks.lists(*[3] * tensors)
    steps = [torch.zeros(()) for _ in params]

    def count(op, *arguments, **options) -> int:
        before = emulated_launches()
        op(*arguments, **options, backend="cuda")
        return emulated_launches() - before

    assert count(vt.sam_square_sum, params, grads) == 2
    assert count(vt.sam_perturb_, params, grads, backups, rho=0.05, adaptive=[i % 2 == 0 for i in range(tensors)]) == 3
    assert count(vt.sam_perturb_, params, grads, backups, rho=0.05, square_sum=torch.ones((), dtype=torch.float64)) == 2
    assert count(vt.sam_restore_, params, backups) == 1
    assert count(vt.sgd_step_, params, grads, lr=0.1, backups=backups) == 1
    assert count(vt.adamw_step_, params, grads, *([torch.zeros(3) for _ in params] for _ in range(2)), steps, lr=0.1, backups=backups) == 2


def test_the_table_is_used_to_its_last_row():
    params, grads, backups = checks.lists(*[1 + i % 3 for i in range(cuda.MAX_TENSORS)])
    expected = [param.clone() for param in params]
    torch.ops.vtkernels_native.sam_restore(backups, params)
    assert all(torch.equal(backup, param) for backup, param in zip(backups, expected, strict=True))
    with pytest.raises(RuntimeError, match="at most 576 tensors, got 577"):
        torch.ops.vtkernels_native.sam_restore([*backups, backups[0]], [*params, params[0]])
