"""AugMix's loss, cross-entropy and 12 times the Jensen-Shannon consistency of three views, against every other way to compute it.

    python benchmarks/jsd.py --quick                       10 and 1000 classes, eager peers, three rounds
    python benchmarks/jsd.py                               10, 100 and 1000 classes, batches of 128 to 1024, every peer
    python benchmarks/jsd.py --classes 21841 --batches 128 --tuned-malloc
    python benchmarks/jsd.py --dtype bfloat16 --threads 1

Method, peers and columns are explained in benchmarks/README.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import command
import report
import timing
import torch
from attn_problem import TOLERANCE, Wrong
from attn_sides import Gated
from peers.jsd import PEERS, PUBLISHED, VIEWS, WEIGHT, Loss
from peers.window_attention import Unavailable
from torch import Tensor

import vtkernels as vt
from vtkernels._core import native
from vtkernels._core.testing import BenchCase, in_dtype
from vtkernels.ops.jsd.cases import BATCHES, CLASSES, bench_cases

OURS, RAW = "vtkernels", "kernel"
QUICK_PEERS = ["augmix", "timm", "stable"]
PHASES = ("forward", "training")


class Problem:
    """Logits of all views as a leaf, the clean view's classes, and the loss and gradient in fp64."""

    def __init__(self, case: BenchCase, dtype: torch.dtype, device: str):
        inputs = case.inputs(dtype, device)
        self.case, self.dtype, self.device = case, dtype, device
        self.logits, self.target = inputs["logits"].requires_grad_(), inputs["target"]
        rows, self.classes = self.logits.shape
        self.batch = rows // VIEWS
        exact = in_dtype(inputs, torch.float64)["logits"].detach().requires_grad_()
        loss = vt.augmix_loss(exact, self.target, num_views=VIEWS, weight=WEIGHT, backend="reference")
        loss.backward()
        self.true_loss, self.true_gradient = loss.detach(), exact.grad

    def bytes(self, phase: str) -> int:
        """The logits once, and their gradient once."""
        return sum(self.case.bytes(part, self.dtype) for part in (("forward",) if phase == "forward" else ("forward", "backward")))

    def check(self, loss: Tensor, gradient: Tensor | None) -> dict[str, float]:
        found = {"loss": (loss.detach(), self.true_loss)} | ({} if gradient is None else {"gradient": (gradient, self.true_gradient)})
        errors = {}
        for name, (value, true) in found.items():
            if value.shape != true.shape:
                raise Wrong(f"{name} has shape {list(value.shape)}, not {list(true.shape)}")
            errors[name] = float((value.double() - true).norm() / true.norm())
            # written so that a NaN fails
            if not errors[name] <= (tolerance := TOLERANCE[str(self.dtype).removeprefix("torch.")]):
                raise Wrong(f"{name} is off by {errors[name]:.1e} (allowed {tolerance:.0e})")
        return errors


def train(problem: Problem, loss: Loss) -> tuple[Tensor, Tensor]:
    problem.logits.grad = None
    value = loss(problem.logits, problem.target)
    value.backward()
    return value, problem.logits.grad


@torch.no_grad()
def evaluate(problem: Problem, loss: Loss) -> tuple[Tensor, None]:
    return loss(problem.logits, problem.target), None


def raw(problem: Problem, phase: str) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """The native kernel alone, on memory that is there."""
    loss, gradient = torch.empty(()), torch.empty_like(problem.logits, requires_grad=False) if phase == "training" else None
    weights, logits = [1 / VIEWS] * VIEWS, problem.logits.detach()

    def run() -> tuple[Tensor, Tensor | None]:
        torch.ops.vtkernels_native.jsd.default(logits, problem.target, None, VIEWS, weights, WEIGHT, 0.0, 1 / problem.batch, loss, gradient)
        return loss, gradient

    return run


def gate(problem: Problem, phase: str, peers: list[str], backend: str) -> Gated:
    """Every side whose loss, and in training whose gradient, is right."""
    gated = Gated()
    step = train if phase == "training" else evaluate
    sides = {OURS: lambda: partial(step, problem, partial(vt.augmix_loss, num_views=VIEWS, weight=WEIGHT, backend=backend))}
    if problem.device == "cpu" and native.why_missing() is None:
        sides[RAW] = lambda: raw(problem, phase)
    sides |= {name: lambda name=name: partial(step, problem, PEERS[name]()) for name in peers}
    for name, build in sides.items():
        try:
            run = build()
            gated.errors[name] = problem.check(*run())
        except Exception as error:  # whatever stops a peer must not stop the benchmark, and must be shown
            lines = str(error).strip().splitlines() or [""]
            gated.refused[name] = lines[0][:300] if isinstance(error, Unavailable) else f"{type(error).__name__}: {lines[0][:300]}"
        else:
            gated.sides.append(timing.Side(name, run))
    return gated


def main() -> None:
    options = parse()
    command.settle(options)
    started = time.perf_counter()
    name = command.file_name(options, "jsd", "k" + "-".join(map(str, options.classes)), options.dtype, quick=options.quick, tuned=options.tuned_malloc)
    command.keep(run(options), options, name, started, show)


def parse() -> argparse.Namespace:
    parser = command.parser(__doc__, PEERS, f"three rounds, 10 and 1000 classes, peers {', '.join(QUICK_PEERS)}, unless given", isa=True)
    parser.add_argument("--classes", type=int, nargs="+", help=f"default {CLASSES[0]} {CLASSES[1]} {CLASSES[2]}; ImageNet-21k has {CLASSES[3]}")
    parser.add_argument("--batches", type=int, nargs="+", help=f"default {' '.join(map(str, BATCHES))}")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    options = command.parse(parser, QUICK_PEERS)
    options.classes = options.classes or ([10, 1000] if options.quick else list(CLASSES[:3]))
    options.batches = options.batches or ([128] if options.quick else list(BATCHES))
    return options


def run(options: argparse.Namespace) -> dict:
    result = command.facts("jsd", options)
    command.announce(f"AugMix loss, {VIEWS} views", result)
    for case in bench_cases(options.classes, options.batches):
        problem = Problem(case, getattr(torch, options.dtype), options.device)
        for phase in options.phases:
            torch.compiler.reset()  # or the second shape would find the first one's graphs, and give up after the eighth
            row = measure_row(problem, phase, options)
            result["rows"].append(row)
            print(progress(row), file=sys.stderr, flush=True)
    result["summary"] = summarize(result["rows"])
    return result


def measure_row(problem: Problem, phase: str, options: argparse.Namespace) -> dict:
    row = {"classes": problem.classes, "batch": problem.batch, "phase": phase, "bytes": problem.bytes(phase)}
    row["backend"] = vt.explain("augmix_loss", problem.logits, problem.target, backend=options.backend).chosen()
    gated = gate(problem, phase, options.peers, options.backend)
    row |= {"errors": gated.errors, "refused": gated.refused}
    if not gated.sides:
        return row
    times = command.sampled(gated.sides, options, row, "us")
    names = list(row["us"])
    if OURS in names:
        row["over_published"] = times.ratio(PUBLISHED, OURS) if PUBLISHED in names else None
        row["fastest"] = command.versus(times, [name for name in names if name in PEERS], OURS)
        row["GBps"] = row["bytes"] / times.seconds(OURS) / 1e9
    return row


def progress(row: dict) -> str:
    where = f"K={row['classes']:<6} B={row['batch']:<5} {row['phase']:9}"
    if OURS not in row.get("us", {}):
        return f"{where} {OURS} NOT TIMED: {row['refused'].get(OURS)}"
    return f"{where} {row['us'][OURS]:9.1f} us, {command.ratio(row['over_published'])} published, {command.best(row['fastest'])}"


def summarize(rows: list[dict]) -> dict:
    """Geometric mean and minimum over the batches, by phase and class count, and by what is compared with."""
    summary: dict[str, dict] = {}
    for phase, classes in dict.fromkeys((row["phase"], row["classes"]) for row in rows):
        mine = [row for row in rows if (row["phase"], row["classes"]) == (phase, classes)]
        found = {"over_published": [row["over_published"] for row in mine if row.get("over_published")]}
        found["over_fastest"] = [row["fastest"]["ratio"] for row in mine if row.get("fastest")]
        summary[f"{phase} K={classes}"] = {key: {"mean": statistics.geometric_mean(values), "min": min(values)} for key, values in found.items() if values}
    return summary


def show(result: dict) -> None:
    rows = [row for row in result["rows"] if OURS in row.get("us", {})]
    table = []
    for row in rows:
        kernel = f"{row['us'][RAW]:.1f}" if RAW in row["us"] else "-"
        cells = [f"{row['phase']} K={row['classes']} B={row['batch']}", f"{row['us'][OURS]:.1f}", f"{row['spread'][OURS]:.1%}", kernel]
        table.append([*cells, command.ratio(row["over_published"]), command.best(row["fastest"]), f"{row['GBps']:.1f}", row["backend"]])
    report.print_table(
        "vtkernels, and how many times faster it is", ["", "us", "spread", "kernel alone", "over published", "over fastest peer", "GB/s", "backend"], table
    )
    command.every_side(rows, lambda row: [f"{row['phase']} K={row['classes']} B={row['batch']}"], [""], "us")
    print()
    for where, part in result["summary"].items():
        print(f"{where:18} " + ", ".join(f"{key.replace('_', ' ')}: mean {value['mean']:.2f}x, least {value['min']:.2f}x" for key, value in part.items()))
    command.tell_disturbed(result["rows"])
    command.tell_refused(result["rows"], lambda row: f"K={row['classes']} B={row['batch']} {row['phase']}")


if __name__ == "__main__":
    main()
