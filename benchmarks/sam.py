"""A SAM step (norm, perturb, restore, base step) against every other way to make it.

    python benchmarks/sam.py --quick                         ViT-S and Swin-T, two peers, three rounds
    python benchmarks/sam.py                                 the same lists, every peer
    python benchmarks/sam.py --model all --base adamw --threads 1
    python benchmarks/sam.py --memory                        also what each side keeps beside parameters, gradients and states
    python benchmarks/sam.py --demo                          ViT-S, and a summary in words

Method, peers and columns are explained in benchmarks/README.md.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import command
import report
import sam_problem
import timing
import torch
from attn_sides import Gated
from peers.sam import PEERS
from sam_problem import BASES, Problem
from sam_sides import CLASS, CONTROLS, OURS, PLAIN, controls, extra_memory, gate, has_add_to, ours, running_backend

from vtkernels._core import native

QUICK_PEERS = ["published", "foreach_fused"]
GOALS = ["vit_s", "swin_t"]


def main() -> None:
    options = parse()
    command.settle(options)
    started = time.perf_counter()
    result = run(options)
    path, plot = command.keep(result, options, file_name(options), started, None if options.demo else show)
    if options.demo:
        tell(result, path, plot)


def parse() -> argparse.Namespace:
    quick = f"three rounds and, unless --peers says otherwise, only {', '.join(QUICK_PEERS)}"
    parser = command.parser(__doc__, PEERS, quick, dtypes=("float32", "bfloat16"), isa=True)
    parser.add_argument("--demo", action="store_true", help="quick, ViT-S, and a summary in words")
    parser.add_argument("--model", nargs="+", choices=(*sam_problem.MODELS, "all"), help=f"parameter lists; default {' '.join(GOALS)}")
    parser.add_argument("--base", nargs="+", choices=BASES, default=list(BASES), help="optimizers below SAM; default both")
    parser.add_argument("--memory", action="store_true", help="also measure what each side allocates")
    options = command.parse(parser, QUICK_PEERS)
    if options.model is None:
        options.model = GOALS[:1] if options.demo else GOALS
    elif "all" in options.model:
        options.model = [name for name in sam_problem.MODELS if name != "tiny"]
    if options.device == "cpu" and "published" in options.peers:
        # what torch chooses by itself there: one name is enough
        options.peers = [name for name in options.peers if name != "published_single"]
    return options


def file_name(options: argparse.Namespace) -> str:
    models, bases = "demo" if options.demo else "-".join(options.model), "-".join(options.base) if len(options.base) < len(BASES) else None
    return command.file_name(options, "sam", models, bases, options.dtype, quick=options.quick and not options.demo, tuned=options.tuned_malloc)


def run(options: argparse.Namespace) -> dict:
    control = "y += x " + ("(native, ordinary and streaming stores)" if options.device == "cpu" and has_add_to() else "(torch.add)")
    result = command.facts("sam", options, control=control)
    command.announce("SAM steps", result, f"bandwidth control: {control}, of as many bytes as a SAM step must move, in the same rounds")
    for model in options.model:
        for base in options.base:
            torch.compiler.reset()  # or the second list would find the first one's graphs, and give up after the eighth
            start = time.perf_counter()
            row = measure_row(Problem(model, sam_problem.MODELS[model](), BASES[base], getattr(torch, options.dtype), options.device), options)
            result["rows"].append(row)
            print(progress(row, time.perf_counter() - start), file=sys.stderr, flush=True)
    result["summary"] = summarize(result["rows"])
    return result


def measure_row(problem: Problem, options: argparse.Namespace) -> dict:
    row = {
        "name": problem.name,
        "phase": problem.base.name,
        "tensors": problem.tensors,
        "parameters": problem.numel,
        "streams": problem.base.streams,
        "bytes": problem.bytes,
        "backend": running_backend(problem, options.backend),
    }
    memory = {}
    if options.memory:
        # before the sides are made, so that no list of theirs is counted
        for name in (*ours(options.backend), *options.peers):
            try:
                memory[name] = extra_memory(problem, name, options.backend)
            except Exception:  # the gate will tell why this side cannot run
                continue
    gated: Gated = gate(problem, options.peers, options.backend)
    row |= {"errors": gated.errors, "refused": gated.refused}
    if options.memory:
        row["extra_bytes_per_parameter"] = {name: bytes_ for name, bytes_ in memory.items() if name in gated.errors}
    sides = gated.sides + controls(problem)
    times = command.sampled(sides, options, row)
    names = list(row["ms"])
    control = times.fastest([name for name in names if name in CONTROLS])
    row["control"] = {"name": control, "GBps": problem.bytes / times.seconds(control) / 1e9}
    for name, key in ((OURS, "ours"), (CLASS, "class")):
        if name in names:
            row[key] = compared(times, name, control, [name for name in names if name in PEERS], PLAIN in names, problem)
    return row


def compared(times: timing.Timings, name: str, control: str, peers: list[str], plain: bool, problem: Problem) -> dict:
    return {
        "GBps": problem.bytes / times.seconds(name) / 1e9,
        # the control moves the same number of bytes
        "share_of_control": times.ratio(control, name),
        "over_published": times.ratio("published", name) if "published" in peers else None,
        "fastest": command.versus(times, peers, name),
        "plain_steps": times.ratio(name, PLAIN) if plain else None,
    }


def progress(row: dict, seconds: float) -> str:
    where = f"{row['name']:10} {row['phase']:6}"
    if "ours" not in row:
        return f"{where} {OURS} NOT TIMED: {row['refused'].get(OURS)}"
    best = row["ours"]["fastest"]
    against = f", {best['ratio']:.2f}x {best['name']}" if best else ""
    return f"{where} {row['ms'][OURS]:8.3f} ms, {row['ours']['share_of_control']:.0%} of the control{against}   [{seconds:.1f} s]"


def summarize(rows: list[dict]) -> dict:
    """Geometric mean and minimum over the lists, by base optimizer and by what is compared with."""
    summary: dict[str, dict] = {}
    for phase in dict.fromkeys(row["phase"] for row in rows):
        mine = [row["ours"] for row in rows if row["phase"] == phase and "ours" in row]
        found = {key: [side[key] for side in mine if side[key]] for key in ("over_published", "share_of_control", "plain_steps")}
        found["over_fastest"] = [side["fastest"]["ratio"] for side in mine if side["fastest"]]
        summary[phase] = {
            key: {"mean": statistics.geometric_mean(values), "min": min(values), "max": max(values), "lists": len(values)}
            for key, values in found.items()
            if values
        }
    return summary


def show(result: dict) -> None:
    rows = result["rows"]
    columns = ["list", "base", "side", "ms", "spread", "over published", "over fastest peer", "GB/s", "control GB/s", "of control", "plain steps", "backend"]
    table = []
    for row in rows:
        for name, key in ((OURS, "ours"), (CLASS, "class")):
            if key not in row:
                continue
            side = row[key]
            cells = [row["name"], row["phase"], name, f"{row['ms'][name]:.3f}", f"{row['spread'][name]:.1%}", command.ratio(side["over_published"])]
            cells += [command.best(side["fastest"]), f"{side['GBps']:.1f}", f"{row['control']['GBps']:.1f}", f"{side['share_of_control']:.0%}"]
            table.append([*cells, command.ratio(side["plain_steps"]), row["backend"]])
    report.print_table("vtkernels, and how many times faster it is", columns, table)

    names = [OURS, CLASS, *result["peers"], PLAIN, *CONTROLS]
    names = [name for name in names if any(name in row["ms"] for row in rows)]
    command.every_side(rows, lambda row: [row["name"], row["phase"]], ["list", "base"])
    if any("extra_bytes_per_parameter" in row for row in rows):
        extra = [[row["name"], row["phase"], *(byte_cell(row["extra_bytes_per_parameter"].get(name)) for name in names)] for row in rows]
        report.print_table("at most allocated beside parameters, gradients and states, bytes per parameter", ["list", "base", *names], extra)

    print()
    for phase, part in result["summary"].items():
        for key, value in part.items():
            form = {"share_of_control": "{:.1%}", "plain_steps": "{:.2f}"}.get(key, "{:.2f}x")
            mean, low, high = (form.format(value[which]) for which in ("mean", "min", "max"))
            print(f"{phase:6} {key.replace('_', ' '):18} mean {mean}, {low} to {high} over {value['lists']} list" + "s" * (value["lists"] != 1))
    command.tell_disturbed(rows)
    command.tell_refused(rows, lambda row: f"{row['name']}/{row['phase']}")


def byte_cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def tell(result: dict, path: Path, plot: Path | None) -> None:
    """What the numbers mean to somebody who trains with SAM on this machine."""
    rows = result["rows"]
    print("\nOne SAM step beside its two backward passes: norm, perturb, restore and the base step. Every side was checked against fp64 before it was timed.")
    for row in rows:
        title = f"{row['name']} ({row['parameters'] / 1e6:.1f} M parameters, {row['tensors']} tensors), {row['phase']}"
        if "ours" not in row:
            print(f"- NOT TIMED: {title}: {row['refused'].get(OURS)}")
            continue
        side, parts = row["ours"], []
        if side["over_published"]:
            parts.append(f"{side['over_published']:.1f} times as fast as the implementation everyone copies")
        if side["fastest"]:
            parts.append(f"{side['fastest']['ratio']:.1f} times as fast as the fastest other ({side['fastest']['name']})")
        parts.append(f"{side['share_of_control']:.0%} of the memory's own pace")
        if side["plain_steps"]:
            parts.append(f"as long as {side['plain_steps']:.2f} fused {row['phase']} steps without SAM")
        print(f"- {title}, backend {row['backend']}: {row['ms'][OURS]:.1f} ms, " + ", ".join(parts) + ".")
    print("- Every parameter came back to the bit and stayed where it was in memory.")
    print(f"- Every number: {report.shown(path)}" + (f"; drawn: {report.shown(plot)}" if plot else ""))
    if disturbed := sum(row["disturbed"] for row in rows):
        print(f"- Other programs were busy during {disturbed} of {sum(row['rounds'] for row in rows)} rounds: take the numbers as rough.")
    if missing := native.why_missing():
        print(f"- The fast CPU kernels did not run: {missing}.")
    print("Next: `python benchmarks/sam.py` (every peer, Swin-T too), `--memory` (what each side allocates), `make test` (the proof).")


if __name__ == "__main__":
    main()
