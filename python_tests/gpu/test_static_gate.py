"""Machine code of the Triton kernels, built for GPUs that are not there, against rules and reviewed budgets."""

import os

import pytest

pytest.importorskip("triton", reason="the static gate compiles with triton, which is not installed")

import torch
import triton
import triton.language as tl

from python_tests.gpu import aot, gate
from python_tests.gpu.kernels import Case, cases, launches, sam_launches, window_call
from vtkernels.ops.window_attention.triton import Plan

FULL = os.environ.get("CI") == "true" or os.environ.get("VTKERNELS_FULL") == "1"


def _chosen() -> list[Case]:
    """The quick builds; in the full run all for sm_90, and for the other architectures each kernel's first. `gate --full` has the rest."""
    every = list(cases())
    firsts = {(case.kernel.kernel.__name__, case.arch): case.name for case in reversed(every)}
    return [case for case in every if case.quick or FULL and (case.arch == 90 or case.name in firsts.values())]


@pytest.mark.parametrize("case", _chosen(), ids=lambda case: case.name)
def test_machine_code_is_within_budget(case: Case):
    assert gate.breaches(case, case.kernel.compile(case.arch), gate.load()) == []


def _mutant(dtype: torch.dtype, name: str, plan: Plan, **constants) -> list[str]:
    """Breaches of a backward built otherwise than the launcher builds it, under the budget of the right one."""
    build = launches(window_call(dtype), backward=plan)[1]
    build.arguments.update(constants)
    case = Case(f"small_bwd {name} 7x7 d32 sm_90", 90, build, quick=True, strict=dtype != torch.float32)
    return gate.breaches(case, build.compile(90), gate.load())


def test_twice_the_warps_are_caught():
    wrong = _mutant(torch.bfloat16, "bfloat16", Plan(264, num_warps=8, num_stages=2))
    assert any("blocks" in sentence for sentence in wrong), wrong


def test_products_off_the_tensor_cores_are_caught():
    wrong = _mutant(torch.float32, "float32", Plan(264, num_warps=4, num_stages=2), PRECISION="ieee")
    assert any("loop_spills" in sentence for sentence in wrong) and any("products" in sentence for sentence in wrong), wrong


def test_narrow_accesses_are_caught():
    build = next(build for build in sam_launches([torch.float32]) if "perturb" in build.kernel.__name__)
    # an element for each thread
    build.arguments["BLOCK"] = 128
    case = Case("sam_perturb float32 sm_90", 90, build, quick=True, strict=True, products=False)
    wrong = gate.breaches(case, build.compile(90), gate.load())
    assert any("no 16-byte global loads" in sentence for sentence in wrong) and any("stores" in sentence for sentence in wrong), wrong


def test_tiles_too_wide_for_the_registers_are_caught():
    build = next(build for build in launches(window_call(torch.bfloat16, window=16, size=64, cosine=True)) if "bwd_key" in build.kernel.__name__)
    build.arguments["COLUMNS"] = 128
    case = Case("large_bwd_key bfloat16 16x16 d32 cosine sm_90", 90, build, quick=True, strict=True)
    wrong = gate.breaches(case, build.compile(90), gate.load())
    assert any("spilled registers" in sentence for sentence in wrong), wrong


@triton.jit
def atomic_sum_kernel(x_ptr, sum_ptr, BLOCK: tl.constexpr):
    tl.atomic_add(sum_ptr, tl.sum(tl.load(x_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)), 0))


def test_global_atomics_are_caught():
    x, total = torch.empty(4096, device="meta"), torch.empty(1, device="meta")
    (build,) = aot.builds(lambda: atomic_sum_kernel[(4,)](x, total, BLOCK=1024, num_warps=4))
    case = Case("jsd_loss", 90, build, quick=True, strict=False, products=False)
    assert any("atomics" in sentence for sentence in gate.breaches(case, build.compile(90), gate.load()))


def test_an_unknown_version_is_judged_with_slack():
    case = next(case for case in cases() if case.quick)
    code = case.kernel.compile(case.arch)
    newest = gate.load()[max(gate.load(), key=gate._as_numbers)][case.name]
    doubled = {name: value if name in gate.FLOORS else 2 * value for name, value in newest.items()}
    assert gate.breaches(case, code, {"3.5": {case.name: doubled}}, version="99.0") == []
    halved = {name: value if name in gate.FLOORS else value // 2 for name, value in newest.items()}
    assert len(gate.breaches(case, code, {"3.5": {case.name: halved}}, version="99.0")) >= 2
