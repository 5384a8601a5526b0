"""CaiT's class attention, its projections included, against every other way to run it on a CPU.

    python benchmarks/class_attn.py --quick                        two peers, three rounds
    python benchmarks/class_attn.py --medium                       every peer, also with oneDNN's fp32 products
    python benchmarks/class_attn.py --dtype bfloat16 --threads 1

Method, peers and columns are explained in benchmarks/README.md.
"""

import argparse
import sys
import time
from pathlib import Path

import peaks as machine_peaks
import plots
import report
import timing
import torch
from attn_sides import MEDIUM, OURS, Gated
from class_attn_problem import PHASES, Problem, gate
from peers.class_attention import FOLDED, PEERS, STANDARD

from vtkernels.ops.class_attention.cases import bench_cases

RESULTS = report.HERE / "results"
QUICK_PEERS = ["timm_sdpa", "folded"]


def main() -> None:
    options = parse()
    if options.tuned_malloc:
        report.restart_with(report.TUNED_MALLOC)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    result = run(options)
    result["seconds"] = round(time.perf_counter() - started, 1)
    flags = {"medium": options.medium, "quick": options.quick, "tuned": options.tuned_malloc}
    name = [
        "class_attn",
        options.dtype,
        f"b{options.batch}",
        f"{options.threads}t",
        *options.only.split("/"),
        *(flag for flag, given in flags.items() if given),
    ]
    path = report.save(result, options.out, "_".join(filter(None, name)), "cpu")
    show(result)
    plot = plots.draw(path)
    print(f"\n{result['seconds']:.0f} s; results in {report.shown(path)}" + (f", plot in {report.shown(plot)}" if plot else ""))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"three rounds and, unless --peers says otherwise, only {', '.join(QUICK_PEERS)}")
    parser.add_argument("--only", default="", help="only shapes whose name contains this, such as cait_s24/197")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--peers", nargs="+", choices=(*PEERS, "all", "none"), metavar="PEER", help=f"any of {', '.join(PEERS)}; default all")
    parser.add_argument("--medium", action="store_true", help="each side also under set_float32_matmul_precision('medium')")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, help="timed rounds (default 9, quick 3)")
    parser.add_argument("--tuned-malloc", action="store_true", help="keep glibc from mapping and unmapping large tensors, for all sides")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default benchmarks/results)")
    options = parser.parse_args()
    if options.medium and options.dtype != "float32":
        parser.error("--medium changes float32 products only; leave it out or use --dtype float32")
    if options.peers is None:
        options.peers = QUICK_PEERS if options.quick else list(PEERS)
    elif "all" in options.peers or "none" in options.peers:
        options.peers = list(PEERS) if "all" in options.peers else []
    return options


def run(options: argparse.Namespace) -> dict:
    plan = timing.QUICK if options.quick else timing.Plan()
    plan = timing.Plan(**vars(plan) | {"rounds": options.rounds or plan.rounds})
    peaks = machine_peaks.measure("cpu")
    environment = report.environment("cpu")
    print(f"class attention, {options.dtype}, on {environment['device']}, threads: {environment['threads']}; native kernels: {environment['isa']}")
    print(f"peaks here and now: {peaks.flops[options.dtype] / 1e9:.0f} GFLOP/s, copy {peaks.copy / 1e9:.0f} GB/s; allocator: {environment['allocator']}")
    print("disturbed rounds " + ("are repeated" if timing.can_watch() else "cannot be detected here"), flush=True)
    cases = [case for case in bench_cases(batch=options.batch) if options.only in case.name]
    if not cases:
        sys.exit(f"--only {options.only!r} leaves no shape; names look like cait_s24/197")
    rows = []
    for case in cases:
        torch.compiler.reset()
        problem = Problem(case, getattr(torch, options.dtype))
        for phase in PHASES:
            row = measure_row(problem, phase, gate(problem, phase, options.peers, options.medium), plan, peaks)
            rows.append(row)
            print(progress(row), file=sys.stderr, flush=True)
    facts = {"benchmark": "class_attention", "device": "cpu", "dtype": options.dtype, "environment": environment, "peaks": peaks.as_json()}
    return facts | {"plan": vars(plan) | {"watching": timing.can_watch()}, "rows": rows}


def measure_row(problem: Problem, phase: str, gated: Gated, plan: timing.Plan, peaks: machine_peaks.Peaks) -> dict:
    batch, tokens, channels = problem.x.shape
    shape = {"batch": batch, "tokens": tokens, "channels": channels, "heads": problem.heads}
    row = {"name": problem.case.name, "shape": shape, "phase": phase, "backend": "cpu", "errors": gated.errors, "refused": gated.refused}
    if not gated.sides or OURS not in [side.name for side in gated.sides]:
        return row
    times = timing.measure(gated.sides, plan)
    names = [side.name for side in gated.sides]
    row["ms"] = {name: times.seconds(name) * 1e3 for name in names}
    row["spread"] = {name: times.spread(name) for name in names}
    row |= {"rounds": len(times.rounds), "dropped": times.dropped, "disturbed": times.disturbed}
    flops, moved = problem.work(phase)
    seconds = times.seconds(OURS)
    row |= {"GFLOPs": flops / seconds / 1e9, "share_of_peak": flops / seconds / peaks.flops["float32"], "share_of_copy": moved / seconds / peaks.copy}
    row["over_module"] = times.ratio("timm", OURS) if "timm" in names else None
    # with oneDNN's products allowed, each side in its better setting; against the folded form both with them
    ours = times.fastest([OURS, OURS + MEDIUM] if OURS + MEDIUM in names else [OURS])
    row["fastest"] = versus(times, [name for name in STANDARD if name in names], OURS)
    row["fastest_with_medium"] = versus(times, [name for name in names if name.removesuffix(MEDIUM) in STANDARD], ours)
    row["folded"] = versus(times, [name for name in FOLDED if name in names], OURS)
    row["folded_both_medium"] = versus(times, [name + MEDIUM for name in FOLDED if name + MEDIUM in names], OURS + MEDIUM)
    return row


def versus(times: timing.Timings, peers: list[str], ours: str) -> dict | None:
    best = times.fastest(peers)
    return best and {"name": best, "ratio": times.ratio(best, ours)}


def progress(row: dict) -> str:
    if OURS in row["refused"]:
        return f"{row['name']:18} {row['phase']:9} vtkernels NOT TIMED: {row['refused'][OURS]}"
    return f"{row['name']:18} {row['phase']:9} {row['ms'][OURS]:8.3f} ms, {shown(row['fastest'])}, {shown(row['folded'])}"


def shown(best: dict | None) -> str:
    return f"{best['ratio']:.2f}x {best['name']}" if best else "-"


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
         *(shown(row[key]) for key in ("fastest", "fastest_with_medium", "folded", "folded_both_medium")),
         f"{row['GFLOPs']:.0f}", f"{row['share_of_peak']:.0%}", f"{row['share_of_copy']:.0%}"]
        for row in rows
    ]  # fmt: skip
    report.print_table("vtkernels, and how many times faster it is", columns, table)
    names = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    table = [[row["name"], row["phase"], *(f"{row['ms'][name]:.3f}" if name in row["ms"] else "-" for name in names)] for row in rows]
    report.print_table("every side, ms", ["shape", "phase", *names], table)
    dropped, disturbed = (sum(row.get(key, 0) for row in rows) for key in ("dropped", "disturbed"))
    print(f"disturbed rounds: {dropped} dropped and repeated, {disturbed} kept for want of quiet ones")
    for row in result["rows"]:
        for name, reason in row["refused"].items():
            print(f"not timed: {name}, {row['phase']} ({row['name']}): {reason}")


if __name__ == "__main__":
    main()
