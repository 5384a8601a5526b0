"""One command for a CUDA machine: is every op right on it, to the bit repeatable, and how fast? Under eight minutes.

python benchmarks/gpu_check.py                 writes benchmarks/results/<device>/gpu_check.json; exits 1 where a result is wrong
python benchmarks/gpu_check.py --dry           the same script on a CPU, tiny, through Triton's interpreter: checks the script, times nothing

First the machine's limits, measured in this process; then each op x backend x dtype against fp64 with unwritten memory
poisoned, twice, and SAM's launches and CUDA graphs; then times, by CUDA events, of SAM steps and of window attention in
Swin-T and Swin-B at batch 128: the op, its kernels launched in other ways, and its peers, interleaved and with a cold
cache. The clock is asked before every step,
steps are ordered by what they tell, and what did not fit is listed in the JSON under "skipped".
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_check_sam
import peaks
import report
import sam_problem
import torch
from attn_problem import PHASES, Problem
from attn_sides import OURS, gate
from timing import Side

from vtkernels._core import testing
from vtkernels._core.op import OPS
from vtkernels._core.testing import BenchCase, Case
from vtkernels.ops.window_attention import triton as window_triton
from vtkernels.ops.window_attention.cases import bench_cases
from vtkernels.ops.window_attention.common import LARGEST_TILE

DRY = "--dry" in sys.argv
MINUTES = 8.0
# of them, at most this share for correctness: compilation, a second or two a case, is what takes the time
CORRECTNESS_SHARE = 0.5
BACKENDS = ("triton", "cuda", "reference")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PEERS = ("timm", "timm_sdpa", "sdpa")
ROUNDS = 1 if DRY else 25
# larger than any second-level cache
FLUSH_BYTES = 256 << 20
# The device sleeps while the host enqueues a sample, so that what is timed is the device; some milliseconds
SLEEP_CYCLES = 8_000_000


@dataclass
class Clock:
    seconds: float
    start: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        return time.monotonic() - self.start

    def allows(self, seconds: float, share: float = 1.0) -> bool:
        return self.spent + seconds <= self.seconds * share


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry", action="store_true", help="run the script itself on a CPU, through Triton's interpreter")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    options = parser.parse_args()
    device = "cpu" if DRY else "cuda"
    if not DRY and not torch.cuda.is_available():
        print("gpu_check: no CUDA device is visible to torch; --dry checks the script without one", file=sys.stderr)
        return 2
    if DRY:
        _interpret()
    clock = Clock(60 * options.minutes)
    result: dict[str, Any] = {"dry": DRY, "environment": report.environment(device), "skipped": []}
    if not DRY:
        result["machine"] = _machine()
        result["limits"] = (limits := peaks.measure(device)).as_json()
    result["correctness"] = check_all(device, clock, result["skipped"])
    sound = not result["correctness"]["wrong"]
    result["sam"] = time_sam(device, clock, result["skipped"], None if DRY else limits) if sound else []
    result["times"] = time_all(device, clock, result["skipped"], None if DRY else limits) if sound else []
    result["seconds"] = clock.spent
    folder = Path(__file__).parent / ("out" if DRY else "results")
    path = report.save(result, folder, "gpu_check", device)
    wrong = result["correctness"]["wrong"]
    print(f"\n{result['correctness']['checked']} checks, {len(wrong)} wrong; {len(result['skipped'])} steps skipped; {clock.spent:.0f} s; {report.shown(path)}")
    print(*wrong, sep="\n")
    return bool(wrong)


def _interpret() -> None:
    # read when triton is imported, which no import above does
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from python_tests.gpu.interpreter import repair

    repair()


def _machine() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_GB": properties.total_memory / 1e9,
        "second_level_cache_MB": properties.L2_cache_size / 1e6,
        "cuda": torch.version.cuda,
    }


def check_all(device: str, clock: Clock, skipped: list[str]) -> dict[str, Any]:
    """Every op, backend and dtype, by the tolerance rule and repeated to the bit; representative cases first."""
    checked, wrong, refused = 0, [], {}
    for op, case, dtype, backend in _checks():
        name = f"correctness of {op} on {backend}: {case.name} in {_short(dtype)}"
        if not clock.allows(10, CORRECTNESS_SHARE):
            skipped.append(f"{name}: no time left")
            continue
        reason = testing.why_not(op, case.inputs(dtype, device), backend)
        if reason is not None:
            refused[name] = reason
            continue
        checked += 1
        found = _problems(op, case, dtype, backend, device)
        wrong += found
        print(f"{'WRONG' if found else 'right'}  {name}", flush=True)
    for name, check in {} if DRY else gpu_check_sam.checks(device).items():
        if not clock.allows(10, CORRECTNESS_SHARE):
            skipped.append(f"{name}: no time left")
            continue
        checked += 1
        found = _attempt(name, check)
        wrong += found
        print(f"{'WRONG' if found else 'right'}  {name}", flush=True)
    return {"checked": checked, "wrong": wrong, "refused": refused}


def _checks() -> list[tuple[str, Case, torch.dtype, str]]:
    rows = [(op, case, dtype, name) for op in OPS for case in testing.cases(op) for dtype in DTYPES for name in BACKENDS if name in OPS[op].backend_names]
    if DRY:
        return [row for row in rows if row[1].name in ("window_4", "dense_bias_large_window", "mixed_dtypes") and row[2] != torch.float16]
    # the representative cases in every dtype, then the rest dtype by dtype; the reference has only its dtypes to show, and
    # multi-tensor kernels treat their dtypes alike
    rows = [row for row in rows if row[1].representative or row[3] != "reference" and (testing.has_gradients(row[0]) or row[2] == torch.float32)]
    return sorted(rows, key=lambda row: (not row[1].representative, DTYPES.index(row[2])))


def _problems(op: str, case: Case, dtype: torch.dtype, backend: str, device: str) -> list[str]:
    name = f"{op}, backend {backend}, case {case.name}, {_short(dtype)}"

    def find() -> list[str]:
        with testing.poisoned_memory():
            first, second = (testing.run_case(op, case.inputs(dtype, device), backend) for _ in range(2))
        verdicts = testing.judge_outcome(op, backend, case, dtype, first, device)
        differing = [quantity for quantity, value in first.items() if not torch.equal(value, second[quantity])]
        return [str(verdict) for verdict in verdicts if not verdict.passed] + [f"{name}: {quantity} differs from run to run" for quantity in differing]

    return _attempt(name, find)


def _attempt(name: str, check: Callable[[], list[str]]) -> list[str]:
    """What is wrong: a kernel that fails to build or to run is a finding, not the end of the check."""
    try:
        return check()
    except Exception as error:
        return [f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"]


def time_sam(device: str, clock: Clock, skipped: list[str], limits: peaks.Peaks | None) -> list[dict[str, Any]]:
    """Whole SAM steps: norm, perturb, restore and the base step."""
    rows = []
    for model in ("tiny",) if DRY else gpu_check_sam.MODELS:
        for base in list(sam_problem.BASES.values())[: 1 if DRY else None]:
            if not clock.allows(30):
                skipped.append(f"SAM with {base.name} on {model}: no time left")
                continue
            problem = sam_problem.Problem(model, sam_problem.MODELS[model](), base, torch.float32, device)
            rows.append(gpu_check_sam.timed(problem, _interleaved, limits.copy if limits else None, list(gpu_check_sam.PEERS)))
            shares = rows[-1].get("share_of_copy", {})
            print(f"{rows[-1]['case']}: {', '.join(f'{side} {share:.0%} of copy' for side, share in shares.items()) or 'not timed'}", flush=True)
    return rows


def time_all(device: str, clock: Clock, skipped: list[str], limits: peaks.Peaks | None) -> list[dict[str, Any]]:
    rows = []
    for case in _timed_cases():
        for phase in PHASES:
            if not clock.allows(30):
                skipped.append(f"times of {case.name}, {phase}: no time left")
                continue
            problem = Problem(case, torch.bfloat16, device)
            rows.append(_timed(problem, phase, clock, skipped, limits))
            del problem
            if not DRY:
                torch.cuda.empty_cache()
    return rows


def _timed_cases() -> list[BenchCase]:
    """First stages first: they move the most bytes. Then the third, which Swin repeats most."""
    if DRY:
        return [case for case in bench_cases(("swin_t",), 1) if "/stage4/" in case.name]
    return sorted(bench_cases(("swin_b", "swin_t"), 128), key=lambda case: "1324".index(case.name.split("/stage")[1][0]))


def _timed(problem: Problem, phase: str, clock: Clock, skipped: list[str], limits: peaks.Peaks | None) -> dict[str, Any]:
    name = f"{problem.case.name}, {phase}"
    peers = list(PEERS)
    if DRY:
        skipped.append(f"torch.compile in {name}: the dry run compiles nothing")
    elif clock.allows(90):
        peers += ["inductor", "inductor_sdpa"]
    else:
        skipped.append(f"torch.compile in {name}: no time left to compile")
    gated = gate(problem, phase, peers, medium=False, backend="triton")
    for side, reason in gated.refused.items():
        print(f"not timed: {side} in {name}: {reason}")
    if OURS in gated.refused:
        return {"case": name, "refused": gated.refused}
    milliseconds = _interleaved(gated.sides + _variants(problem, phase))
    flops, moved = problem.work(phase)
    row: dict[str, Any] = {
        "case": name,
        "shape": str(problem.shape),
        "dtype": _short(problem.dtype),
        "errors": gated.errors,
        "refused": gated.refused,
    }
    if DRY:
        return row | {"sides": sorted(milliseconds)}
    ours = statistics.median(milliseconds[OURS])
    row["device_ms"] = {side: statistics.median(times) for side, times in milliseconds.items()}
    row["spread"] = {side: _spread(times) for side, times in milliseconds.items()}
    row["ratio"] = {side: row["device_ms"][side] / ours for side in gated.errors if side != OURS}
    row["share_of_copy"] = moved / (1e-3 * ours) / limits.copy
    row["share_of_matmul"] = flops / (1e-3 * ours) / limits.flops["bfloat16"]
    row["peak_extra_bytes"] = _peak_extra(gated.sides[0])
    ratios = ", ".join(f"{side} {value:.2f}x" for side, value in row["ratio"].items())
    print(f"{name}: {ours:.3f} ms, {row['share_of_copy']:.0%} of copy; {ratios}", flush=True)
    return row


def _variants(problem: Problem, phase: str) -> list[Side]:
    """The kernels launched in other ways than the launcher chooses, without autograd; "training" times the backward alone."""
    call = testing.call_of("window_attention", problem.arguments(problem.qkv.detach(), problem.table.detach(), "triton"))
    if call.tokens > LARGEST_TILE:
        return []
    kernel_phase = "forward" if phase == "forward" else "backward"
    usual = window_triton.small_plan(kernel_phase, call)
    plans = {
        "usual": usual,
        "1 stage": usual._replace(num_stages=1),
        "3 stages": usual._replace(num_stages=3),
        "twice the programs": usual._replace(programs=2 * usual.programs),
        "half the programs": usual._replace(programs=usual.programs // 2),
        "more resident": usual._replace(
            maxnreg=96 if phase == "forward" else 168, programs=usual.programs * 5 // 4 if phase == "forward" else usual.programs * 3 // 2
        ),
    }
    if DRY:
        plans = {"usual": usual}
    return [Side(f"{kernel_phase} kernel, {name}", _launch(call, problem, phase, plan)) for name, plan in plans.items()]


def _launch(call: Any, problem: Problem, phase: str, plan: "window_triton.Plan") -> Callable[[], Any]:
    if phase == "forward":
        return lambda: window_triton.forward(call, plan)
    statistics_of_none = torch.empty(0, device=call.qkv.device)
    return lambda: window_triton.backward(call, problem.grad_out, None, statistics_of_none, plan)


def _interleaved(sides: list[Side]) -> dict[str, list[float]]:
    """Milliseconds of every side in every round, on the device's clock and with a cold cache."""
    for side in sides:
        for _ in range(1 if DRY else 3):
            with side.context():
                side.run()
    if DRY:
        return {side.name: [] for side in sides}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {side.name: [] for side in sides}
    for _ in range(ROUNDS):
        for side in sides:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with side.context():
                flush.zero_()
                torch.cuda._sleep(SLEEP_CYCLES)
                start.record()
                side.run()
                end.record()
            torch.cuda.synchronize()
            events[side.name].append((start, end))
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


def _spread(times: list[float]) -> float:
    """Distance of the quartiles over the median."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / middle


def _peak_extra(side: Side) -> int:
    """Most bytes allocated at once during a call, beyond what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with side.context():
        side.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
