"""Whole models: ours, timm's accelerated, timm's eager and compiled; a training step with AdamW, and inference.

    python benchmarks/train_step.py --quick                            Swin-T, eager and accelerated, three rounds
    python benchmarks/train_step.py --medium --threads 2               three models, every side, also with oneDNN's fp32 products for the peers
    python benchmarks/train_step.py --models swin_base_patch4_window7_224 --dtype bfloat16 --device cuda

Method, sides and columns are explained in benchmarks/README.md.
"""

import argparse
import sys
import time
from pathlib import Path

import peaks as machine_peaks
import report
import timing
import torch
from attn_sides import MEDIUM, OURS
from train_step_sides import ACCELERATED, PEERS, PHASES, SIDES, Admitted, Problem, gate, peak_memory, sides

RESULTS = report.HERE / "results"
MODELS = ("swin_tiny_patch4_window7_224", "cait_xxs24_224", "vit_small_patch16_224")
QUICK_SIDES = [ACCELERATED, "timm"]


def main() -> None:
    options = parse()
    if options.tuned_malloc:
        report.restart_with(report.TUNED_MALLOC)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    result = run(options)
    result["seconds"] = round(time.perf_counter() - started, 1)
    flags = {"medium": options.medium, "quick": options.quick, "tuned": options.tuned_malloc}
    models = [] if options.models == list(MODELS) else options.models
    name = ["train_step", options.dtype, f"b{options.batch}", f"{options.threads}t" if options.device == "cpu" else "", *models]
    path = report.save(result, options.out, "_".join(filter(None, [*name, *(flag for flag, given in flags.items() if given)])), options.device)
    show(result)
    print(f"\n{result['seconds']:.0f} s; results in {report.shown(path)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"three rounds of {MODELS[0]}, and only {', '.join(QUICK_SIDES)}, unless told otherwise")
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"timm's names; default {', '.join(MODELS)}")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="default all")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    parser.add_argument("--medium", action="store_true", help="the peers also under set_float32_matmul_precision('medium')")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, help="timed rounds (default 9, quick 3)")
    parser.add_argument("--tuned-malloc", action="store_true", help="keep glibc from mapping and unmapping large tensors, for all sides")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default benchmarks/results)")
    options = parser.parse_args()
    if options.medium and options.dtype != "float32":
        parser.error("--medium changes float32 products only; leave it out or use --dtype float32")
    options.models = options.models or list(MODELS[:1] if options.quick else MODELS)
    options.sides = options.sides or (QUICK_SIDES if options.quick else list(SIDES))
    return options


def run(options: argparse.Namespace) -> dict:
    plan = timing.QUICK if options.quick else timing.Plan()
    # a step takes so long that one call is a sample, and the gate has warmed everything up
    plan = timing.Plan(**vars(plan) | {"rounds": options.rounds or plan.rounds, "warmup_s": 0.0})
    peaks = machine_peaks.measure(options.device)
    environment = report.environment(options.device)
    print(f"whole models, {options.dtype}, batch {options.batch}, on {environment['device']}, threads: {environment['threads']}")
    print(f"peaks here and now: {peaks.flops[options.dtype] / 1e9:.0f} GFLOP/s; allocator: {environment['allocator']}", flush=True)
    rows = []
    for name in options.models:
        problem = Problem(name, getattr(torch, options.dtype), options.batch, options.device)
        torch.compiler.reset()
        admitted = gate(problem, options.sides, options.medium)
        for phase in options.phases:
            row = measure_row(problem, admitted, phase, options, plan)
            rows.append(row)
            print(progress(row), file=sys.stderr, flush=True)
    facts = {"benchmark": "train_step", "device": options.device, "dtype": options.dtype, "environment": environment, "peaks": peaks.as_json()}
    return facts | {"plan": vars(plan) | {"watching": timing.can_watch()}, "rows": rows}


def measure_row(problem: Problem, admitted: Admitted, phase: str, options: argparse.Namespace, plan: timing.Plan) -> dict:
    timed = sides(problem, admitted, phase)
    row = {"name": problem.name, "phase": phase, "batch": options.batch, "errors": admitted.errors, "refused": admitted.refused}
    if not timed:
        return row
    times = timing.measure(timed, plan, torch.cuda.synchronize if options.device == "cuda" else lambda: None)
    names = [side.name for side in timed]
    row["images_per_s"] = {name: options.batch / times.seconds(name) for name in names}
    row["ms"] = {name: times.seconds(name) * 1e3 for name in names}
    row["spread"] = {name: times.spread(name) for name in names}
    row["peak_bytes"] = {side.name: peak_memory(side, options.device) for side in timed}
    row |= {"rounds": len(times.rounds), "dropped": times.dropped, "disturbed": times.disturbed}
    row["times_faster"] = {
        side: {peer: times.ratio(peer, side) for peer in names if peer.removesuffix(MEDIUM) in PEERS} for side in (OURS, ACCELERATED) if side in names
    }
    return row


def progress(row: dict) -> str:
    if "ms" not in row:
        return f"{row['name']} {row['phase']}: nothing could be timed: {row['refused']}"
    rates = ", ".join(f"{name} {rate:.1f}" for name, rate in row["images_per_s"].items())
    return f"{row['name']:30} {row['phase']:9} images/s: {rates}"


def show(result: dict) -> None:
    rows = [row for row in result["rows"] if "ms" in row]
    names = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    table = [[row["name"], row["phase"], *(f"{row['images_per_s'][name]:.1f}" if name in row["ms"] else "-" for name in names)] for row in rows]
    report.print_table("images per second", ["model", "phase", *names], table)
    peers = [name for name in names if name.removesuffix(MEDIUM) in PEERS]
    for side in (OURS, ACCELERATED):
        table = [
            [row["name"], row["phase"], *(f"{row['times_faster'][side][peer]:.2f}x" if peer in row["times_faster"][side] else "-" for peer in peers)]
            for row in rows
            if side in row["times_faster"]
        ]
        if table:
            report.print_table(f"how many times faster {side} is than", ["model", "phase", *peers], table)
    table = [[row["name"], row["phase"], *(megabytes(row["peak_bytes"].get(name)) for name in names)] for row in rows]
    report.print_table("most memory in use during a step beyond that before it, MB", ["model", "phase", *names], table)
    table = [[row["name"], row["phase"], *(f"{row['spread'][name]:.1%}" if name in row["spread"] else "-" for name in names)] for row in rows]
    report.print_table("spread of the times", ["model", "phase", *names], table)
    dropped, disturbed = (sum(row.get(key, 0) for row in rows) for key in ("dropped", "disturbed"))
    print(f"disturbed rounds: {dropped} dropped and repeated, {disturbed} kept for want of quiet ones")
    for model, name, reason in dict.fromkeys((row["name"], name, reason) for row in result["rows"] for name, reason in row["refused"].items()):
        print(f"not timed: {name} ({model}): {reason}")


def megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}"


if __name__ == "__main__":
    main()
