"""Pairs for dense relative localisation against the published algorithm and a careful gather, eager and compiled.

    python benchmarks/drloc.py --quick --tuned-malloc        two peers, three rounds
    python benchmarks/drloc.py --tuned-malloc                the project's goal table (CPU)
    python benchmarks/drloc.py --only b256                   the large ones as users meet them, with glibc's own allocator

Channels-last maps, as Swin and ViT have them. Every side draws, gathers and concatenates pairs and makes the targets; training adds the
gradient of the map. A side's results are checked against the positions it drew itself. With --tuned-malloc all
sides have one allocator, ours does not recycle its results.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import command
import peaks as machine_peaks
import report
import timing
import torch
from attn_problem import Wrong
from attn_sides import OURS, Gated
from peers.drloc import PEERS
from torch import Tensor

import vtkernels as vt
from vtkernels._core.testing import BenchCase
from vtkernels.ops.drloc_pairs.cases import bench_cases

PHASES = ("forward", "training")
QUICK_PEERS = ["published", "gather"]
# of sums of a few numbers; copies must be equal
TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3}


class Problem:
    """The map and the pairs' gradient of one row, the same for every side, and the gate."""

    def __init__(self, case: BenchCase, dtype: torch.dtype, device: str):
        self.case, self.dtype = case, dtype
        inputs = case.inputs(dtype, device)
        self.features: Tensor = inputs["features"].requires_grad_()
        self.pairs: int = inputs["num_pairs"]
        batch, _, _, channels = self.features.shape
        self.grad = torch.randn(batch, self.pairs, 2 * channels, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def bytes(self, phase: str) -> int:
        return sum(self.case.bytes(p, self.dtype) for p in (("forward", "backward") if phase == "training" else (phase,)))

    def check(self, result: tuple, scaled: bool) -> float:
        """The largest relative error, 0 for exact; raises `Wrong`. `scaled`: targets are shares of the map, not counts."""
        pairs, targets, positions, grad = result
        positions = (positions if isinstance(positions, Tensor) else torch.cat(positions, -1)).to(self.features.device)
        height, width = self.features.shape[1:3]
        size = positions.new_tensor([height, width] * 2)
        if (positions < 0).any() or (positions >= size).any():
            raise Wrong("a position lies outside the map")
        if not all(positions[..., i].unique().numel() == size[i] for i in range(4)):
            raise Wrong("some rows or columns are never drawn")
        with torch.no_grad():
            expected, distance, _ = vt.drloc_pairs(self.features, positions=positions, normalize=scaled, backend="reference")
        if not torch.equal(pairs, expected):
            raise Wrong("pairs are not the features at their positions")
        if not torch.allclose(targets, distance, rtol=1e-6, atol=0):
            raise Wrong("targets are not the distances of the positions")
        if grad is None:
            return 0.0
        truth = torch.ops.vtkernels.drloc_pairs_backward(self.grad.double(), positions, height, width, "reference")
        error = float((grad.double() - truth).norm() / truth.norm())
        if not error <= TOLERANCE[str(self.dtype).removeprefix("torch.")]:
            raise Wrong(f"the gradient is off by {error:.1e} of its norm")
        return error


def gate(problem: Problem, phase: str, names: list[str], backend: str) -> Gated:
    """Every side that is right."""
    gated = Gated()
    _admit(gated, problem, phase, OURS, lambda: lambda features, pairs: vt.drloc_pairs(features, num_pairs=pairs, backend=backend))
    for name in names:
        _admit(gated, problem, phase, name, PEERS[name])
    return gated


def _admit(gated: Gated, problem: Problem, phase: str, name: str, build: Callable[[], Any]) -> None:
    training = phase == "training"

    def context() -> contextlib.AbstractContextManager:
        return torch.set_grad_enabled(training)

    def work() -> tuple:
        pairs, targets, positions = side(problem.features, problem.pairs)
        grad = torch.autograd.grad(pairs, problem.features, problem.grad)[0] if training else None
        return pairs, targets, positions, grad

    try:
        with context():
            side = build()
            gated.errors[name] = {"result": problem.check(work(), scaled=not name.startswith("published"))}
    except Exception as error:  # whatever stops a peer must not stop the benchmark, and must be shown
        lines = str(error).strip().splitlines() or [""]
        gated.refused[name] = f"{type(error).__name__}: {lines[0][:300]}"
    else:
        gated.sides.append(timing.Side(name, work, context))


def main() -> None:
    options = parse()
    command.settle(options)
    if options.tuned_malloc:
        os.environ["VTKERNELS_RECYCLE"] = "0"
    started = time.perf_counter()
    name = command.file_name(options, "drloc", options.dtype, quick=options.quick, tuned=options.tuned_malloc)
    command.keep(run(options), options, name, started, show)


def parse() -> argparse.Namespace:
    parser = command.parser(__doc__, PEERS, f"three rounds and, unless --peers says otherwise, only {', '.join(QUICK_PEERS)}")
    parser.add_argument("--only", default="", help="only shapes whose name contains this, such as b64/c768 or m32")
    return command.parse(parser, QUICK_PEERS)


def run(options: argparse.Namespace) -> dict:
    cases = [case for case in bench_cases() if options.only in case.name]
    if not cases:
        sys.exit(f"--only {options.only!r} leaves no shape; names look like b64/c768/7x7/m32")
    peaks = machine_peaks.measure(options.device)
    result = command.facts("drloc_pairs", options, peaks=peaks.as_json())
    command.announce("DRLOC pairs", result, command.peaks_line(result))
    for case in cases:
        torch.compiler.reset()  # or the second shape would be compiled for dynamic sizes, and the ninth not at all
        problem = Problem(case, getattr(torch, options.dtype), options.device)
        for phase in PHASES:
            row = measure_row(problem, phase, options, peaks)
            result["rows"].append(row)
            print(progress(row), file=sys.stderr, flush=True)
    return result


def measure_row(problem: Problem, phase: str, options: argparse.Namespace, peaks: machine_peaks.Peaks) -> dict:
    gated = gate(problem, phase, options.peers, options.backend)
    batch, edge, _, channels = problem.features.shape
    shape = {"batch": batch, "edge": edge, "channels": channels, "pairs": problem.pairs}
    found = vt.explain("drloc_pairs", problem.features, backend=options.backend)
    row = {"name": problem.case.name, "shape": shape, "phase": phase, "backend": found.chosen(), "errors": gated.errors, "refused": gated.refused}
    names = [side.name for side in gated.sides]
    if OURS not in names:
        return row
    times = command.sampled(gated.sides, options, row)
    pace = problem.bytes(phase) / times.seconds(OURS)
    row |= {"GBps": pace / 1e9, "share_of_copy": pace / peaks.copy}
    row["over_published"] = times.ratio("published", OURS) if "published" in names else None
    for key, chosen in (("fastest", names), ("fastest_eager", [name for name in names if not name.endswith("_inductor")])):
        row[key] = command.versus(times, [name for name in chosen if name != OURS], OURS)
    return row


def progress(row: dict) -> str:
    if "ms" not in row:
        return f"{row['name']:24} {row['phase']:9} {OURS} NOT TIMED: {row['refused'].get(OURS)}"
    return f"{row['name']:24} {row['phase']:9} {row['ms'][OURS]:8.3f} ms, {command.ratio(row['over_published'])} published, {command.best(row['fastest'])}"


def show(result: dict) -> None:
    rows = [row for row in result["rows"] if "ms" in row]
    columns = ["shape", "phase", "ms", "spread", "over published", "over fastest eager", "over fastest", "GB/s", "of copy", "backend"]
    table = []
    for row in rows:
        cells = [row["name"], row["phase"], f"{row['ms'][OURS]:.3f}", f"{row['spread'][OURS]:.1%}", command.ratio(row["over_published"])]
        cells += [command.best(row["fastest_eager"]), command.best(row["fastest"]), f"{row['GBps']:.1f}", f"{row['share_of_copy']:.0%}", row["backend"]]
        table.append(cells)
    report.print_table("vtkernels, and how many times faster it is", columns, table)
    command.every_side(rows, lambda row: [row["name"], row["phase"]], ["shape", "phase"])
    print()
    for phase in PHASES:
        for what, values in (
            ("published", [row["over_published"] for row in rows if row["phase"] == phase and row["over_published"]]),
            ("fastest peer", [row["fastest"]["ratio"] for row in rows if row["phase"] == phase and row["fastest"]]),
        ):
            if values:
                print(f"{phase:9} over the {what}: mean {statistics.geometric_mean(values):.2f}x, min {min(values):.2f}x over {len(values)} shapes")
    command.tell_disturbed(result["rows"])
    command.tell_refused(result["rows"], lambda row: f"{row['name']}/{row['phase']}")


if __name__ == "__main__":
    main()
