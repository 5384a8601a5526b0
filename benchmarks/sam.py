"""A SAM step (norm, perturb, restore, base step) against every other way to make it.

    python benchmarks/sam.py --quick                         ViT-S and Swin-T, two peers, three rounds
    python benchmarks/sam.py                                 the same lists, every peer
    python benchmarks/sam.py --model all --base adamw --threads 1
    python benchmarks/sam.py --memory                        also what each side keeps beside parameters, gradients and states
    python benchmarks/sam.py --demo                          ViT-S, and a summary in words

Method, peers and columns are explained in benchmarks/README.md.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import plots
import report
import sam_problem
import timing
import torch
from attn import RESULTS, SCRATCH, ratio, threads, versus
from attn_sides import Gated
from peers.sam import PEERS
from sam_problem import BASES, Problem
from sam_sides import CLASS, CONTROLS, OURS, PLAIN, controls, extra_memory, gate, has_add_to, ours, running_backend

from vtkernels._core import native
from vtkernels._core.env import ISA_NAMES

QUICK_PEERS = ["published", "foreach_fused"]
GOALS = ["vit_s", "swin_t"]


def main() -> None:
    options = parse()
    if options.tuned_malloc:
        report.restart_with(report.TUNED_MALLOC)
    if options.isa:
        os.environ["VTKERNELS_ISA"] = options.isa
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    result = run(options)
    result["seconds"] = round(time.perf_counter() - started, 1)
    path = report.save(result, options.out, file_name(options), options.device)
    if not options.demo:
        show(result)
    plot = plots.draw(path)
    if options.demo:
        tell(result, path, plot)
    else:
        print(f"\n{result['seconds']:.0f} s; results in {report.shown(path)}" + (f", plot in {report.shown(plot)}" if plot else ""))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"three rounds and, unless --peers says otherwise, only {', '.join(QUICK_PEERS)}")
    parser.add_argument("--demo", action="store_true", help="quick, ViT-S, and a summary in words")
    parser.add_argument("--model", nargs="+", choices=(*sam_problem.MODELS, "all"), help=f"parameter lists; default {' '.join(GOALS)}")
    parser.add_argument("--base", nargs="+", choices=BASES, default=list(BASES), help="optimizers below SAM; default both")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of parameters, gradients and states")
    parser.add_argument("--peers", nargs="+", choices=(*PEERS, "all", "none"), metavar="PEER", help=f"any of {', '.join(PEERS)}; default all")
    parser.add_argument("--memory", action="store_true", help="also measure what each side allocates")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backend", default="auto", help="of vtkernels' ops (default auto)")
    parser.add_argument("--isa", choices=ISA_NAMES, help="highest instruction set of the native kernels; the peers keep theirs")
    parser.add_argument("--rounds", type=int, help="timed rounds (default 9, quick 3)")
    parser.add_argument("--tuned-malloc", action="store_true", help="keep glibc from mapping and unmapping large tensors, for all sides")
    parser.add_argument("--out", type=Path, help="folder of the results (default benchmarks/results; of the demo benchmarks/out)")
    options = parser.parse_args()
    options.quick |= options.demo
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no CUDA device")
    if options.model is None:
        options.model = GOALS[:1] if options.demo else GOALS
    elif "all" in options.model:
        options.model = [name for name in sam_problem.MODELS if name != "tiny"]
    if options.peers is None:
        options.peers = QUICK_PEERS if options.quick else list(PEERS)
    elif "all" in options.peers or "none" in options.peers:
        options.peers = list(PEERS) if "all" in options.peers else []
    if options.device == "cpu" and "published" in options.peers:
        # what torch chooses by itself there: one name is enough
        options.peers = [name for name in options.peers if name != "published_single"]
    options.out = options.out or (SCRATCH if options.demo else RESULTS)
    return options


def file_name(options: argparse.Namespace) -> str:
    parts = ["sam", "demo" if options.demo else "-".join(options.model), "-".join(options.base) if len(options.base) < len(BASES) else None, options.dtype]
    if options.device == "cpu":
        parts.append(f"{options.threads}t")
    flags = {"quick": options.quick and not options.demo, "tuned": options.tuned_malloc}
    backend = options.backend if options.backend != "auto" else None
    return "_".join(filter(None, [*parts, options.isa, backend, *(name for name, given in flags.items() if given)]))


def run(options: argparse.Namespace) -> dict:
    plan = timing.QUICK if options.quick else timing.Plan()
    plan = timing.Plan(**vars(plan) | {"rounds": options.rounds or plan.rounds})
    result = {
        "benchmark": "sam",
        "device": options.device,
        "dtype": options.dtype,
        "environment": report.environment(options.device),
        "control": "y += x " + ("(native, ordinary and streaming stores)" if options.device == "cpu" and has_add_to() else "(torch.add)"),
        "plan": vars(plan) | {"watching": timing.can_watch()},
        "peers": options.peers,
        "rows": [],
    }
    announce(result)
    for model in options.model:
        for base in options.base:
            torch.compiler.reset()  # or the second list would find the first one's graphs, and give up after the eighth
            start = time.perf_counter()
            row = measure_row(Problem(model, sam_problem.MODELS[model](), BASES[base], getattr(torch, options.dtype), options.device), options, plan)
            result["rows"].append(row)
            print(progress(row, time.perf_counter() - start), file=sys.stderr, flush=True)
    result["summary"] = summarize(result["rows"])
    return result


def announce(result: dict) -> None:
    environment = result["environment"]
    where = f"{environment['device']}, {threads(result)}" if result["device"] == "cpu" else environment["device"]
    print(f"SAM steps, {result['dtype']}, on {where}; torch {environment['versions']['torch']}, native kernels: {environment['isa']}")
    print(f"bandwidth control: {result['control']}, of as many bytes as a SAM step must move, in the same rounds")
    print(
        f"allocator: {environment['allocator']}; disturbed rounds " + ("are repeated" if result["plan"]["watching"] else "cannot be detected here"), flush=True
    )


def measure_row(problem: Problem, options: argparse.Namespace, plan: timing.Plan) -> dict:
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
    times = timing.measure(sides, plan, torch.cuda.synchronize if problem.device == "cuda" else lambda: None)
    names = [side.name for side in sides]
    row["ms"] = {name: times.seconds(name) * 1e3 for name in names}
    row["spread"] = {name: times.spread(name) for name in names}
    row |= {"rounds": len(times.rounds), "dropped": times.dropped, "disturbed": times.disturbed}
    control = times.fastest([name for name in names if name in CONTROLS])
    row["control"] = {"name": control, "GBps": problem.bytes / times.seconds(control) / 1e9}
    for name, key in ((OURS, "ours"), (CLASS, "class")):
        if name in names:
            row[key] = compared(times, name, control, [name for name in names if name in PEERS], PLAIN in names, problem)
    return row


def compared(times: timing.Timings, name: str, control: str, peers: list[str], plain: bool, problem: Problem) -> dict:
    best = times.fastest(peers)
    return {
        "GBps": problem.bytes / times.seconds(name) / 1e9,
        # the control moves the same number of bytes
        "share_of_control": times.ratio(control, name),
        "over_published": times.ratio("published", name) if "published" in peers else None,
        "fastest": best and {"name": best, "ratio": times.ratio(best, name)},
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
            cells = [row["name"], row["phase"], name, f"{row['ms'][name]:.3f}", f"{row['spread'][name]:.1%}", ratio(side["over_published"])]
            cells += [versus(side["fastest"]), f"{side['GBps']:.1f}", f"{row['control']['GBps']:.1f}", f"{side['share_of_control']:.0%}"]
            table.append([*cells, ratio(side["plain_steps"]), row["backend"]])
    report.print_table("vtkernels, and how many times faster it is", columns, table)

    names = [OURS, CLASS, *result["peers"], PLAIN, *CONTROLS]
    names = [name for name in names if any(name in row["ms"] for row in rows)]
    every = [[row["name"], row["phase"], *(f"{row['ms'][name]:.3f}" if name in row["ms"] else "-" for name in names)] for row in rows]
    report.print_table("every side, ms", ["list", "base", *names], every)
    if any("extra_bytes_per_parameter" in row for row in rows):
        extra = [[row["name"], row["phase"], *(byte_cell(row["extra_bytes_per_parameter"].get(name)) for name in names)] for row in rows]
        report.print_table("at most allocated beside parameters, gradients and states, bytes per parameter", ["list", "base", *names], extra)

    print()
    for phase, part in result["summary"].items():
        for key, value in part.items():
            form = {"share_of_control": "{:.1%}", "plain_steps": "{:.2f}"}.get(key, "{:.2f}x")
            mean, low, high = (form.format(value[which]) for which in ("mean", "min", "max"))
            print(f"{phase:6} {key.replace('_', ' '):18} mean {mean}, {low} to {high} over {value['lists']} list" + "s" * (value["lists"] != 1))
    dropped, disturbed = (sum(row[key] for row in rows) for key in ("dropped", "disturbed"))
    print(f"disturbed rounds: {dropped} dropped and repeated, {disturbed} kept for want of quiet ones")
    refused: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, reason in row["refused"].items():
            refused.setdefault((name, reason), []).append(f"{row['name']}/{row['phase']}")
    for (name, reason), where in refused.items():
        print(f"not timed: {name}" + ("" if len(where) == len(rows) else f" ({', '.join(where)})") + f": {reason}")


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
