"""CaiT's class attention, its projections included, against every other way to run it on a CPU.

    python benchmarks/class_attn.py --quick                        two peers, three rounds
    python benchmarks/class_attn.py --medium                       every peer, also with oneDNN's fp32 products
    python benchmarks/class_attn.py --dtype bfloat16 --threads 1

Method, peers and columns are explained in benchmarks/README.md.
"""

import argparse
import sys
import time

import command
import peaks as machine_peaks
import report
import torch
from attn_sides import MEDIUM, OURS, Gated
from class_attn_problem import PHASES, Problem, gate
from peers.class_attention import FOLDED, PEERS, STANDARD

from vtkernels.ops.class_attention.cases import bench_cases

QUICK_PEERS = ["timm_sdpa", "folded"]


def main() -> None:
    options = parse()
    command.settle(options)
    started = time.perf_counter()
    flags = {"medium": options.medium, "quick": options.quick, "tuned": options.tuned_malloc}
    command.keep(run(options), options, command.file_name(options, "class_attn", options.dtype, f"b{options.batch}", **flags), started, show)


def parse() -> argparse.Namespace:
    parser = command.parser(__doc__, PEERS, f"three rounds and, unless --peers says otherwise, only {', '.join(QUICK_PEERS)}", device=False)
    parser.add_argument("--only", default="", help="only shapes whose name contains this, such as cait_s24/197")
    command.add_medium(parser, "each side")
    parser.add_argument("--batch", type=int, default=32)
    return command.parse(parser, QUICK_PEERS)


def run(options: argparse.Namespace) -> dict:
    peaks = machine_peaks.measure("cpu")
    result = command.facts("class_attention", options, peaks=peaks.as_json())
    command.announce("class attention", result, command.peaks_line(result))
    cases = [case for case in bench_cases(batch=options.batch) if options.only in case.name]
    if not cases:
        sys.exit(f"--only {options.only!r} leaves no shape; names look like cait_s24/197")
    for case in cases:
        torch.compiler.reset()
        problem = Problem(case, getattr(torch, options.dtype))
        for phase in PHASES:
            row = measure_row(problem, phase, gate(problem, phase, options.peers, options.medium), options, peaks)
            result["rows"].append(row)
            print(progress(row), file=sys.stderr, flush=True)
    return result


def measure_row(problem: Problem, phase: str, gated: Gated, options: argparse.Namespace, peaks: machine_peaks.Peaks) -> dict:
    batch, tokens, channels = problem.x.shape
    shape = {"batch": batch, "tokens": tokens, "channels": channels, "heads": problem.heads}
    row = {"name": problem.case.name, "shape": shape, "phase": phase, "backend": "cpu", "errors": gated.errors, "refused": gated.refused}
    if not gated.sides or OURS not in [side.name for side in gated.sides]:
        return row
    times = command.sampled(gated.sides, options, row)
    names = list(row["ms"])
    flops, moved = problem.work(phase)
    seconds = times.seconds(OURS)
    row |= {"GFLOPs": flops / seconds / 1e9, "share_of_peak": flops / seconds / peaks.flops["float32"], "share_of_copy": moved / seconds / peaks.copy}
    row["over_module"] = times.ratio("timm", OURS) if "timm" in names else None
    # with oneDNN's products allowed, each side in its better setting; against the folded form both with them
    ours = times.fastest([OURS, OURS + MEDIUM] if OURS + MEDIUM in names else [OURS])
    row["fastest"] = command.versus(times, [name for name in STANDARD if name in names], OURS)
    row["fastest_with_medium"] = command.versus(times, [name for name in names if name.removesuffix(MEDIUM) in STANDARD], ours)
    row["folded"] = command.versus(times, [name for name in FOLDED if name in names], OURS)
    row["folded_both_medium"] = command.versus(times, [name + MEDIUM for name in FOLDED if name + MEDIUM in names], OURS + MEDIUM)
    return row


def progress(row: dict) -> str:
    if OURS in row["refused"]:
        return f"{row['name']:18} {row['phase']:9} vtkernels NOT TIMED: {row['refused'][OURS]}"
    return f"{row['name']:18} {row['phase']:9} {row['ms'][OURS]:8.3f} ms, {command.best(row['fastest'])}, {command.best(row['folded'])}"


def show(result: dict) -> None:
    rows = [row for row in result["rows"] if "ms" in row]
    columns = [
        "shape",
        "phase",
        "ms",
        "spread",
        "over module",
        "fastest standard",
        "incl. medium",
        "folded",
        "folded, both medium",
        "GFLOP/s",
        "of peak",
        "of copy",
    ]
    table = [
        [row["name"], row["phase"], f"{row['ms'][OURS]:.3f}", f"{row['spread'][OURS]:.1%}", f"{row['over_module']:.2f}x" if row["over_module"] else "-",
         *(command.best(row[key]) for key in ("fastest", "fastest_with_medium", "folded", "folded_both_medium")),
         f"{row['GFLOPs']:.0f}", f"{row['share_of_peak']:.0%}", f"{row['share_of_copy']:.0%}"]
        for row in rows
    ]  # fmt: skip
    report.print_table("vtkernels, and how many times faster it is", columns, table)
    command.every_side(rows, lambda row: [row["name"], row["phase"]], ["shape", "phase"])
    command.tell_disturbed(result["rows"])
    command.tell_refused(result["rows"], lambda row: f"{row['name']}/{row['phase']}")


if __name__ == "__main__":
    main()
