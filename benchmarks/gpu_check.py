"""One command for a CUDA machine: is every op right on it, to the bit repeatable, and how fast? Under eight minutes.

python benchmarks/gpu_check.py                 writes benchmarks/results/<device>/gpu_check.json; exits 1 where a result is wrong or a step failed
python benchmarks/gpu_check.py --dry           the same script on a CPU, tiny, with the CPU's backends: tries the script, its times mean nothing

First the machine's limits, measured in this process; then each op x backend x dtype against fp64 with unwritten memory
poisoned, twice, and SAM's launches, CUDA graphs and waits; then device times of every op beside its peers, interleaved and with a
cold cache, each with the bar it has to clear; window attention's kernels launched in other ways; SAM steps. The clock is asked
before every step, steps are ordered by what they tell, and what did not fit is listed in the JSON under "skipped", what
failed under "failed". The JSON is written after every step. What breaks the device, or does not end, is ended, and the run goes on behind it.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gpu_check_sam
import gpu_correctness
import gpu_graph
import gpu_ops
import gpu_plots
import peaks
import sam_problem
import torch
from attn_sides import OURS
from gpu_ops import BATCH, PHASES, Comparison
from gpu_run import PATIENCE, Run, add_resume, free, interleaved, peak_extra, spread
from timing import Side

HERE = Path(__file__).parent
MINUTES = 8.0
# of them, at most this share for correctness, of which every process makes a check in a second or two
CORRECTNESS_SHARE = 0.35
ROUNDS = {"cuda": 25, "cpu": 1}
# seconds that must be left for a step, and after which it is ended; those of COMPILING wait for torch.compile
STEP, COMPILING_STEP, COMPILING_PATIENCE = 15, 60, 240.0
# of the time, what may be spent before peers are compiled no more
COMPILING_SHARE = 0.85


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="run the script itself on a CPU, at sizes that show nothing")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--out", type=Path, help="folder of the result (default benchmarks/results, dry benchmarks/out)")
    add_resume(parser)
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        print("gpu_check: expected a CUDA device, this torch sees none; --dry tries the script without one", file=sys.stderr)
        return 2
    folder = options.out or HERE / ("out" if options.dry else "results")
    run = Run("gpu_check", "cpu" if options.dry else "cuda", options.minutes, folder, options.dry, options.resume)
    return check(run, gpu_ops.comparisons(4)[: len(gpu_ops.FAMILIES)] if options.dry else gpu_ops.comparisons(BATCH))


def check(run: Run, comparisons: list[Comparison]) -> int:
    limits = run.attempt("the machine's limits", lambda: peaks.measure(run.device), again=True)
    run.result["limits"] = limits and limits.as_json()
    gpu_correctness.check_all(run, CORRECTNESS_SHARE * run.clock.seconds, [row.name for row in comparisons], 0 if run.dry else gpu_correctness.PROCESSES)
    if not run.dry:
        check_sam(run)
    for rows in ("rows", "sam"):
        run.result.setdefault(rows, [])
    first, rest = comparisons[: len(gpu_ops.FAMILIES)], comparisons[len(gpu_ops.FAMILIES) :]
    for comparison in first:
        time_op(run, comparison, limits)
    time_sam(run, limits)
    for comparison in () if run.dry else first:
        time_op(run, comparison, limits, compiled=True)
    for comparison in rest:
        time_op(run, comparison, limits)
    run.result["shifts"] = shifts(run.result["rows"])
    run.attempt("the plot", lambda: gpu_plots.draw(run.save()))
    status = run.finish()
    show_bars(run.result)
    return status


def check_sam(run: Run) -> None:
    """SAM's launches, CUDA graphs and waits, which the op's contract does not know."""
    for name, work in (run.attempt("data of the checks of SAM", _gpu_only, again=True) or {}).items():
        gpu_correctness.note(run, name, run.attempt(name, work, 10, CORRECTNESS_SHARE + 0.1))


def _gpu_only() -> dict[str, Callable[[], list[str]]]:
    graphs = {f"a CUDA graph of a SAM training step with {base}": partial(gpu_graph.capture, base) for base in gpu_graph.BASES}
    waits = {f"waiting in a SAM training step with {base}": partial(gpu_graph.waits, base) for base in gpu_graph.BASES}
    return {**gpu_check_sam.checks("cuda"), **graphs, **waits}


def time_op(run: Run, comparison: Comparison, limits: peaks.Peaks | None, compiled: bool = False) -> None:
    """Rows of one shape beside eager or compiled peers. Each side passes a gate of its own, so that one odd case which is wrong costs no times."""
    dtype = torch.float32 if run.dry else torch.bfloat16
    seconds, share, patience = (COMPILING_STEP, COMPILING_SHARE, COMPILING_PATIENCE) if compiled else (STEP, 1.0, PATIENCE)
    phases = [phase for phase in PHASES if not (compiled and phase == "backward")]
    steps = {phase: f"times of {comparison.name}, {phase}{', compiled peers' if compiled else ''}" for phase in phases}
    if not any(map(run.wants, steps.values())):
        return
    make = partial(gpu_ops.FAMILIES[comparison.op].problem, comparison.case, dtype, run.device)
    problem = run.attempt(f"data of {comparison.name}", make, seconds, share, again=True)
    for phase, step in steps.items() if problem is not None else ():
        torch.compiler.reset()
        row = run.attempt(step, partial(_row, run, comparison, problem, phase, dtype, compiled, limits), seconds, share, patience)
        if row is not None:
            run.result["rows"].append(row)
            run.save()
    del problem
    free(run.device)


def _row(run: Run, comparison: Comparison, problem: Any, phase: str, dtype: torch.dtype, compiled: bool, limits: peaks.Peaks | None) -> dict[str, Any]:
    gated = gpu_ops.sides(comparison, problem, phase, compiled, "auto" if run.dry else "triton", run.device)
    facts = {"op": comparison.op, "case": comparison.case.name, "why": comparison.case.why, "phase": phase, "dtype": _short(dtype), "compiled": compiled}
    facts["wrong"] = sum(line.startswith(f"{comparison.op},") for line in run.result["wrong"])
    facts |= {"bytes": gpu_ops.moved(comparison, phase, dtype), "flops": gpu_ops.flops(comparison, phase)}
    variants = [] if run.dry or comparison.op != "window_attention" or phase == "training" or compiled else gpu_ops.variants(problem, phase)
    row = facts | measured(run, gated.sides, variants, gated.errors, gated.refused, facts["bytes"], facts["flops"], limits)
    row["bars"] = gpu_ops.verdicts(comparison, phase, row) if "device_ms" in row and not compiled else []
    print(_line(comparison.name, row), flush=True)
    return row


def measured(
    run: Run, sides: list[Side], variants: list[Side], errors: dict, refused: dict[str, str], moved: int, flops: int, limits: peaks.Peaks | None
) -> dict[str, Any]:
    """Times of the sides that passed the gate; none at all where ours did not."""
    if OURS not in [side.name for side in sides]:
        return {"errors": errors, "refused": refused}
    milliseconds, failed = interleaved(sides + variants, ROUNDS[run.device], run.device)
    row: dict[str, Any] = {"errors": errors, "refused": refused | failed}
    if OURS not in milliseconds:
        return row
    row["device_ms"] = {name: statistics.median(times) for name, times in milliseconds.items()}
    row["spread"] = {name: spread(times) for name, times in milliseconds.items()}
    ours = row["device_ms"][OURS]
    peers = [side.name for side in sides if side.name in milliseconds and side.name != OURS]
    row["ratio"] = {name: row["device_ms"][name] / ours for name in peers}
    if limits is not None:
        row["share_of_copy"] = moved / (1e-3 * ours) / limits.copy
        row["share_of_matmul"] = flops / (1e-3 * ours) / limits.flops["bfloat16"]
    else:
        row |= {"share_of_copy": None, "share_of_matmul": None}
    if run.device == "cuda":
        row["peak_extra_bytes"] = peak_extra(next(side for side in sides if side.name == OURS))
    return row


def _line(name: str, row: dict[str, Any]) -> str:
    where = f"{name}, {row['phase']}"
    if "device_ms" not in row:
        return f"NOT TIMED {where}: {row['refused'].get(OURS, 'it was not admitted')}"
    share = "" if row["share_of_copy"] is None else f", {row['share_of_copy']:.0%} of copy"
    ratios = "".join(f", {side} {value:.2f}x" for side, value in row["ratio"].items())
    missed = [bar for bar in row["bars"] if not bar["met"]]
    doubt = f" (the op is wrong in {row['wrong']} checks)" if row.get("wrong") else ""
    return f"{where}: {row['device_ms'][OURS]:.4f} ms{share}{ratios}{' BELOW ITS BAR' if missed else ''}{doubt}"


def time_sam(run: Run, limits: peaks.Peaks | None) -> None:
    """Whole SAM steps: norm, perturb, restore and the base step."""
    for model in ("tiny",) if run.dry else gpu_check_sam.MODELS:
        for base in sorted(sam_problem.BASES.values(), key=lambda base: base.name)[: 1 if run.dry else None]:
            row = run.attempt(f"SAM with {base.name} on {model}", partial(_sam_row, run, model, base, limits), STEP)
            if row is not None:
                run.result.setdefault("sam", []).append(row)
                print(f"{row['case']}: {', '.join(f'{side} {share:.0%} of copy' for side, share in row['share_of_copy'].items())}", flush=True)
            free(run.device)


def _sam_row(run: Run, model: str, base: sam_problem.Base, limits: peaks.Peaks | None) -> dict[str, Any]:
    problem = sam_problem.Problem(model, sam_problem.MODELS[model](), base, torch.float32, run.device)
    row = gpu_check_sam.timed(problem, lambda sides: interleaved(sides, ROUNDS[run.device], run.device), limits.copy if limits else None)
    if (model, base.name) == ("vit_b", "adamw"):
        # the better of the backends as they come; their variants are there to learn from
        ours = max((row["share_of_copy"].get(f"{OURS} ({backend})", 0.0) for backend in gpu_check_sam.BACKENDS[run.device]), default=0.0)
        row["bars"] = [{"what": "share of copy", "least": 0.85, "found": ours, "met": ours >= 0.85}]
    return row


def shifts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same stage shifted and not: the shift shall cost nothing."""
    times = {(row["case"], row["phase"]): row["device_ms"][OURS] for row in reversed(rows) if row["op"] == "window_attention" and "device_ms" in row}
    found = []
    for (case, phase), milliseconds in times.items():
        stage, _, shift = case.rpartition("/")
        plain = times.get((f"{stage}/shift0", phase))
        if shift != "shift0" and phase != "training" and plain is not None:
            over = milliseconds / plain
            found.append({"case": case, "phase": phase, "what": "time over the unshifted", "most": 1.03, "found": over, "met": over <= 1.03})
    return found


def show_bars(result: dict[str, Any]) -> None:
    rows = [
        (f"{row.get('op', 'SAM')} {row['case']}, {row.get('phase', 'step')}", bar) for row in (*result["rows"], *result["sam"]) for bar in row.get("bars", ())
    ]
    rows += [(f"window_attention {bar['case']}, {bar['phase']}", bar) for bar in result["shifts"]]
    if rows:
        met = sum(bar["met"] for _, bar in rows)
        print(f"\n{met} of {len(rows)} bars met{' (a dry run: they mean nothing)' if result['dry'] else ''}")
    for name, bar in rows:
        limit = f"at least {bar['least']:g}" if "least" in bar else f"at most {bar['most']:g}"
        value = "not measured" if bar["found"] is None else f"{bar['found']:.2f}"
        print(f"{'met   ' if bar['met'] else 'MISSED'} {name}: {bar['what']} {value}, {limit}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
