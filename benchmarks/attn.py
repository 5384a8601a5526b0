"""Shifted-window attention against every other way to run it.

    python benchmarks/attn.py --quick                        Swin-T, three peers, three rounds
    python benchmarks/attn.py --shapes issue --medium        the project's goal table (CPU)
    python benchmarks/attn.py --model swin_b --dtype bfloat16 --threads 1
    python benchmarks/attn.py --raw                          the native kernel alone, as a share of the machine's peak
    python benchmarks/attn.py --demo                         what `make demo-attention` shows

Method, peers and columns are explained in benchmarks/README.md.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import attn_problem
import command
import peaks as machine_peaks
import plots
import report
import torch
from attn_problem import PHASES, Problem, Shape
from attn_sides import MEDIUM, OURS, Gated, gate, gate_raw, running_backend, saved_bytes
from peers.window_attention import PEERS, eager

from vtkernels._core import native
from vtkernels._core.testing import BenchCase

QUICK_PEERS = ["eager", "timm_sdpa", "inductor"]
RAW_PHASES = ("forward", "backward")


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
    parser = command.parser(__doc__, PEERS, quick, isa=True)
    parser.add_argument("--demo", action="store_true", help="quick, Swin-T at 224, and a summary in words")
    parser.add_argument("--model", choices=(*attn_problem.MODELS, "all"), default="swin_t", help="every stage at 224 and 384 (default swin_t)")
    parser.add_argument("--shapes", choices=("model", "issue"), default="model", help="'issue': Swin-T at 224 and larger windows, instead of --model")
    parser.add_argument("--only", default="", help="only shapes whose name contains this, such as stage1/shift3")
    command.add_medium(parser)
    parser.add_argument("--raw", action="store_true", help="the native CPU kernel alone, in preallocated memory, instead of the comparison")
    parser.add_argument("--batch", type=int, help="default 8 on the CPU, 128 on a GPU")
    options = command.parse(parser, QUICK_PEERS)
    if options.raw and options.device == "cuda":
        parser.error("--raw times the native CPU kernel; leave out --device cuda")
    if options.raw:
        options.peers = []
    options.batch = options.batch or (8 if options.device == "cpu" else 128)
    return options


def file_name(options: argparse.Namespace) -> str:
    shapes = "demo" if options.demo else "issue" if options.shapes == "issue" else options.model
    flags = {"raw": options.raw, "medium": options.medium, "quick": options.quick and not options.demo, "tuned": options.tuned_malloc}
    return command.file_name(options, "attn", shapes, options.dtype, f"b{options.batch}", **flags)


def cases(options: argparse.Namespace) -> list[BenchCase]:
    if options.shapes == "issue":
        found = attn_problem.issue_cases(options.batch)
    elif options.demo:
        found = attn_problem.model_cases("swin_t", options.batch)[:7]
    else:
        models = attn_problem.MODELS if options.model == "all" else (options.model,)
        # Swin-S has the blocks of Swin-T, only more of them
        found = [case for model in models for case in attn_problem.model_cases(model, options.batch) if not (options.model == "all" and model == "swin_s")]
    found = [case for case in found if options.only in case.name]
    if not found:
        sys.exit(f"--only {options.only!r} leaves no shape; names look like swin_t/stage1/shift3")
    return found


def run(options: argparse.Namespace) -> dict:
    peaks = machine_peaks.measure(options.device)
    result = command.facts("window_attention", options, peaks=peaks.as_json())
    result["peers"] = [name + suffix for name in options.peers for suffix in (("", MEDIUM) if options.medium else ("",))]
    command.announce("window attention", result, command.peaks_line(result))
    for case in cases(options):
        torch.compiler.reset()  # or the second shape would be compiled for dynamic sizes, and the ninth not at all
        problem = Problem(case, getattr(torch, options.dtype), options.device)
        for phase in RAW_PHASES if options.raw else PHASES:
            start = time.perf_counter()
            gated = gate_raw(problem, phase) if options.raw else gate(problem, phase, options.peers, options.medium, options.backend)
            row = measure_row(problem, phase, gated, options, "cpu, raw" if options.raw else running_backend(problem, options.backend))
            result["rows"].append(row)
            print(progress(row, time.perf_counter() - start), file=sys.stderr, flush=True)
            peaks = peaks.or_better(machine_peaks.measure(options.device))
    result["peaks"] = peaks.as_json()
    for row in result["rows"]:
        if "GFLOPs" in row:
            row |= {"share_of_peak": row["GFLOPs"] * 1e9 / peaks.flops[options.dtype], "share_of_copy": row["GBps"] * 1e9 / peaks.copy}
    result["summary"] = summarize(result["rows"])
    return result


def measure_row(problem: Problem, phase: str, gated: Gated, options: argparse.Namespace, backend: str) -> dict:
    shape: Shape = problem.shape
    row = {"name": problem.case.name, "shape": shape._asdict(), "phase": phase, "backend": backend, "errors": gated.errors, "refused": gated.refused}
    if phase == "training":
        row["saved_bytes"] = {
            OURS: saved_bytes(problem, lambda: problem.attend(problem.qkv, problem.table, "auto"), (problem.qkv, problem.table)),
            "eager": saved_bytes(problem, lambda: eager(problem, phase)(problem.x, problem.qkv_windows, problem.table), (problem.qkv_windows, problem.table)),
        }
    if not gated.sides:
        return row
    times = command.sampled(gated.sides, options, row)
    names = list(row["ms"])
    if OURS not in names:
        return row
    flops, moved = problem.work(phase)
    seconds = times.seconds(OURS)
    row |= {"GFLOPs": flops / seconds / 1e9, "GBps": moved / seconds / 1e9}
    row["over_eager"] = times.ratio("eager", OURS) if "eager" in names else None
    peers = [name for name in names if name != OURS]
    for key, chosen in (("fastest", [name for name in peers if not name.endswith(MEDIUM)]), ("fastest_with_medium", peers)):
        row[key] = command.versus(times, chosen, OURS)
    return row


def progress(row: dict, seconds: float) -> str:
    if OURS in row["refused"]:
        return f"{row['name']:28} {row['phase']:9} vtkernels NOT TIMED: {row['refused'][OURS]}"
    best = row.get("fastest")
    against = f", {best['ratio']:.2f}x {best['name']}" if best else ""
    return f"{row['name']:28} {row['phase']:9} {row['ms'][OURS]:8.3f} ms{against}   [{seconds:.1f} s]"


def summarize(rows: list[dict]) -> dict:
    """Geometric mean and minimum over the shapes, by phase and by what is compared with."""
    summary: dict[str, dict] = {}
    for phase in dict.fromkeys(row["phase"] for row in rows):
        mine = [row for row in rows if row["phase"] == phase and "GFLOPs" in row]
        found = {
            "over_eager": [row["over_eager"] for row in mine if row["over_eager"]],
            "over_fastest": [row["fastest"]["ratio"] for row in mine if row["fastest"]],
            "share_of_peak": [row["share_of_peak"] for row in mine],
            "share_of_copy": [row["share_of_copy"] for row in mine],
        }
        if any(name.endswith(MEDIUM) for row in mine for name in row["ms"]):
            found["over_fastest_with_medium"] = [row["fastest_with_medium"]["ratio"] for row in mine]
        summary[phase] = {
            key: {"mean": statistics.geometric_mean(values), "min": min(values), "max": max(values), "shapes": len(values)}
            for key, values in found.items()
            if values
        }
    return summary


def show(result: dict) -> None:
    rows = result["rows"]
    timed = [row for row in rows if "GFLOPs" in row]
    columns = ["shape", "phase", "ms", "spread", "over eager", "over fastest peer", "incl. medium", "GFLOP/s", "GB/s", "of peak", "of copy", "backend"]
    medium = any("over_fastest_with_medium" in part for part in result["summary"].values())
    table = []
    for row in timed:
        cells = [
            row["name"],
            row["phase"],
            f"{row['ms'][OURS]:.3f}",
            f"{row['spread'][OURS]:.1%}",
            command.ratio(row["over_eager"]),
            command.best(row["fastest"]),
        ]
        cells += [
            command.best(row["fastest_with_medium"]),
            f"{row['GFLOPs']:.0f}",
            f"{row['GBps']:.1f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['share_of_copy']:.0%}",
        ]
        table.append([*cells, row["backend"]])
    hidden = (set() if medium else {"incl. medium"}) | (set() if any(row["fastest"] for row in timed) else {"over eager", "over fastest peer"})
    keep = [i for i, column in enumerate(columns) if column not in hidden]
    report.print_table("vtkernels, and how many times faster it is", [columns[i] for i in keep], [[row[i] for i in keep] for row in table])

    if result["peers"]:
        command.every_side([row for row in rows if "ms" in row], lambda row: [row["name"], row["phase"]], ["shape", "phase"])

    print()
    for phase, part in result["summary"].items():
        for key, value in part.items():
            form = "{:.1%}" if key.startswith("share") else "{:.2f}x"
            print(f"{phase:9} {key.replace('_', ' '):26} mean {form.format(value['mean'])}, min {form.format(value['min'])} over {value['shapes']} shapes")
    command.tell_disturbed(rows)
    command.tell_refused(rows, lambda row: f"{row['name']}/{row['phase']}")


def tell(result: dict, path: Path, plot: Path | None) -> None:
    """What the numbers mean to somebody who trains Swin on this machine."""
    rows, summary = result["rows"], result["summary"]
    backends = ", ".join(dict.fromkeys(row["backend"] for row in rows))
    isa = f" ({native.isa()})" if "cpu" in backends else ""
    where = f"Swin-T at 224 (batch {rows[0]['shape']['batch']}, {command.threads(result)})"
    print(f"\nThe attention of {where} ran on backend {backends}{isa}; every result was checked against fp64 before it was timed.")
    for row in rows:
        if OURS in row["refused"]:
            print(f"- NOT TIMED: {row['name']}, {row['phase']}: {row['refused'][OURS]}")
    timed = ", ".join(name for name in result["peers"] if any(name in row.get("ms", {}) for row in rows))
    for phase, title in plots.TITLES.items():
        against = {"over_eager": "eager PyTorch", "over_fastest": f"the fastest of {timed}"}
        found = [(summary[phase][key], other) for key, other in against.items() if key in summary.get(phase, {})]
        if found:
            print(f"- {title}: " + ", ".join(f"{part['min']:.1f} to {part['max']:.1f} times as fast as {other}" for part, other in found) + ".")
    if shares := [f"{title} {summary[phase]['share_of_peak']['mean']:.0%}" for phase, title in plots.TITLES.items() if phase in summary]:
        print(f"- Share of the arithmetic peak measured just now, Python and autograd included: {', '.join(shares)}.")
    if saved := [row["saved_bytes"] for row in rows if "saved_bytes" in row]:
        ours, theirs = (sum(s[name] for s in saved) / 1e6 for name in (OURS, "eager"))
        print(f"- Kept from forward to backward beyond qkv, all {len(saved)} blocks measured: {ours:.1f} MB; eager PyTorch: {theirs:.1f} MB.")
    print(f"- Every number: {report.shown(path)}" + (f"; drawn: {report.shown(plot)}" if plot else ""))
    if disturbed := sum(row.get("disturbed", 0) for row in rows):
        print(f"- Other programs were busy during {disturbed} of {sum(row.get('rounds', 0) for row in rows)} rounds: take the numbers as rough.")
    if missing := native.why_missing():
        print(f"- The fast CPU kernels did not run: {missing}.")
    print(
        "Next: `python benchmarks/attn.py --shapes issue --medium` (all peers, larger windows), `--dtype bfloat16` (half precision), `make test` (the proof)."
    )


if __name__ == "__main__":
    main()
