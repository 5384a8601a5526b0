"""Linear layers and MLPs of Swin-T against torch's own, eager and compiled.

    python benchmarks/linear.py --quick                      one layer a kind, three rounds, eager peers
    python benchmarks/linear.py --medium                     peers also under set_float32_matmul_precision("medium")
    python benchmarks/linear.py --ops mlp --stages 1 --threads 1

Both sides make the same result and, in training, the gradients of everything. A side that is not right is not timed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import peaks as machine_peaks
import plots
import report
import timing
import torch
from torch import Tensor
from torch.nn import functional as F

import vtkernels as vt
from vtkernels._core.testing import BenchCase, differentiable, upstream_for
from vtkernels.ops.linear.cases import bench_cases

OURS, MEDIUM = "vtkernels", "_med"
PHASES = ("forward", "training")
# Relative error (2-norm) a side may have against fp64: ten times what eager PyTorch loses here, a hundredth of what bfloat16 inside would.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}


class Wrong(Exception):
    """A side's result differs from the truth: it is not timed."""


def eager_linear(x: Tensor, weight: Tensor, bias: Tensor, activation: None) -> Tensor:
    return F.linear(x, weight, bias)


def eager_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str) -> Tensor:
    """timm's Mlp with its exact GELU."""
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def compiled(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(run, dynamic=False)


EAGER = {"linear": eager_linear, "mlp": eager_mlp}
PEERS = {"eager": lambda op: EAGER[op], "inductor": lambda op: compiled(EAGER[op])}


class Problem:
    """The data of one row, the same for every side, and the gate."""

    def __init__(self, op: str, case: BenchCase, dtype: torch.dtype, device: str):
        self.op, self.case, self.dtype = op, case, dtype
        self.inputs = case.inputs(dtype, device)
        self.leaves = {name: value.requires_grad_() for name, value in differentiable(self.inputs).items()}

    def run(self, phase: str, compute: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        out = compute(**self.inputs)
        return (out, *torch.autograd.grad(out, list(self.leaves.values()), self.grad)) if phase == "training" else (out,)

    @cached_property
    def grad(self) -> Tensor:
        with torch.no_grad():
            return upstream_for((EAGER[self.op](**self.inputs),))[0]

    @cached_property
    @torch.enable_grad()
    def truth(self) -> tuple[Tensor, ...]:
        leaves = {name: leaf.detach().double().requires_grad_() for name, leaf in self.leaves.items()}
        out = EAGER[self.op](**self.inputs | leaves)
        return out.detach(), *torch.autograd.grad(out, list(leaves.values()), self.grad.double())

    def check(self, found: tuple[Tensor, ...]) -> dict[str, float]:
        """Relative errors against fp64; raises `Wrong` where one is beyond what rounding explains."""
        errors = {}
        for name, value, true in zip(("out", *self.leaves), found, self.truth, strict=False):
            errors[name] = float((value.detach().double() - true).norm() / true.norm())
            # written so that a NaN fails
            if not errors[name] <= (tolerance := TOLERANCE[str(self.dtype).removeprefix("torch.")]):
                raise Wrong(f"{name} is off by {errors[name]:.1e} of its norm (allowed {tolerance:.0e})")
        return errors

    def flops(self, phase: str) -> int:
        return sum(self.case.flops[part] for part in (("forward", "backward") if phase == "training" else ("forward",)))


def admit(problem: Problem, phase: str, options: argparse.Namespace) -> tuple[list[timing.Side], dict, dict]:
    """The sides that are right, each with its errors; and why the others are not timed."""
    wanted = [(OURS, lambda: partial(getattr(vt, problem.op), backend=options.backend), "highest")]
    for name in options.peers:
        for suffix, precision in (("", "highest"), (MEDIUM, "medium"))[: 1 + options.medium]:
            wanted.append((name + suffix, partial(PEERS[name], problem.op), precision))
    sides, errors, refused = [], {}, {}
    for name, build, precision in wanted:
        context = partial(timing.setting, phase == "training", precision)
        try:
            with context():
                run = partial(problem.run, phase, build())
                errors[name] = problem.check(run())
        except Exception as error:  # whatever stops a peer must not stop the benchmark, and must be shown
            refused[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
        else:
            sides.append(timing.Side(name, run, context))
    return sides, errors, refused


def measure_row(problem: Problem, phase: str, options: argparse.Namespace, plan: timing.Plan, peak: float) -> dict:
    sides, errors, refused = admit(problem, phase, options)
    found = vt.explain(problem.op, **problem.inputs, backend=options.backend)
    row = {"name": problem.case.name, "why": problem.case.why, "phase": phase, "errors": errors, "refused": refused}
    row["backend"] = found.chosen("forward" if phase == "forward" else "backward")
    names = [side.name for side in sides]
    if OURS not in names:
        return row
    times = timing.measure(sides, plan, torch.cuda.synchronize if options.device == "cuda" else lambda: None)
    row |= {"ms": {name: times.seconds(name) * 1e3 for name in names}, "spread": {name: times.spread(name) for name in names}}
    row |= {"rounds": len(times.rounds), "dropped": times.dropped, "disturbed": times.disturbed}
    row |= {"GFLOPs": {name: problem.flops(phase) / times.seconds(name) / 1e9 for name in names}}
    row["share_of_peak"] = row["GFLOPs"][OURS] * 1e9 / peak
    row["over_eager"] = times.ratio("eager", OURS) if "eager" in names else None
    peers = [name for name in names if name != OURS]
    for key, chosen in (("fastest", [name for name in peers if not name.endswith(MEDIUM)]), ("fastest_with_medium", peers)):
        best = times.fastest(chosen)
        row[key] = best and {"name": best, "ratio": times.ratio(best, OURS)}
    return row


def show(result: dict) -> None:
    rows = [row for row in result["rows"] if "ms" in row]

    def versus(best: dict | None) -> str:
        return f"{best['ratio']:.2f}x {best['name']}" if best else "-"

    table = []
    for row in rows:
        cells = [row["name"], row["phase"], f"{row['ms'][OURS]:.2f}", f"{row['spread'][OURS]:.1%}", f"{row['over_eager'] or 0:.2f}x", versus(row["fastest"])]
        table.append([*cells, versus(row["fastest_with_medium"]), f"{row['GFLOPs'][OURS]:.0f}", f"{row['share_of_peak']:.0%}", row["backend"]])
    columns = ["layer", "phase", "ms", "spread", "over eager", "over fastest peer", "incl. medium", "GFLOP/s", "of peak", "backend"]
    report.print_table("vtkernels, and how many times faster it is", columns, table)
    names = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    table = [[row["name"], row["phase"], *(f"{row['GFLOPs'][name]:.0f}" if name in row["ms"] else "-" for name in names)] for row in rows]
    report.print_table("every side, GFLOP/s", ["layer", "phase", *names], table)
    print()
    for key in ("fastest", "fastest_with_medium"):
        for phase in PHASES:
            ratios = [row[key]["ratio"] for row in rows if row["phase"] == phase and row[key]]
            if ratios:
                print(f"{phase:9} over the {key.replace('_', ' ')}: mean {statistics.geometric_mean(ratios):.2f}x, least {min(ratios):.2f}x of {len(ratios)}")
    for row in result["rows"]:
        for name, reason in row["refused"].items():
            print(f"not timed: {name}, {row['name']}, {row['phase']}: {reason}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three short rounds, eager peers, the first stage only unless given")
    parser.add_argument("--ops", nargs="+", choices=tuple(EAGER), default=list(EAGER))
    parser.add_argument("--stages", nargs="+", type=int, choices=(1, 2, 3, 4), help="of Swin-T (default all)")
    parser.add_argument("--batch", type=int, default=8, help="images of 224 pixels")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--peers", nargs="*", choices=tuple(PEERS), help="default all")
    parser.add_argument("--medium", action="store_true", help="each peer also under set_float32_matmul_precision('medium')")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backend", default="auto", help="of vtkernels (default auto, which measures)")
    parser.add_argument("--rounds", type=int, help="timed rounds (default 9, quick 3)")
    parser.add_argument("--tuned-malloc", action="store_true", help="keep glibc from mapping and unmapping large tensors, for all sides")
    parser.add_argument("--out", type=Path, default=report.HERE / "results", help="folder of the results (default benchmarks/results)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no CUDA device")
    options.stages = options.stages or ([1] if options.quick else [1, 2, 3, 4])
    options.peers = options.peers if options.peers is not None else (["eager"] if options.quick else list(PEERS))
    return options


def main() -> None:
    options = parse()
    if options.tuned_malloc:
        report.restart_with(report.TUNED_MALLOC)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    plan = timing.QUICK if options.quick else timing.Plan()
    plan = timing.Plan(**vars(plan) | {"rounds": options.rounds or plan.rounds})
    peaks = machine_peaks.measure(options.device)
    peak = peaks.flops[options.dtype]
    result = {"benchmark": "linear", "device": options.device, "dtype": options.dtype, "environment": report.environment(options.device)}
    result |= {"peaks": peaks.as_json(), "plan": vars(plan) | {"watching": timing.can_watch()}, "rows": []}
    print(f"linear layers, {options.dtype}, {report.device_name(options.device)}, {options.threads} threads; peak {peak / 1e9:.0f} GFLOP/s", flush=True)
    for op in options.ops:
        for case in bench_cases(op, options.stages, options.batch):
            torch.compiler.reset()  # or the ninth shape would not be compiled
            problem = Problem(op, case, getattr(torch, options.dtype), options.device)
            for phase in PHASES:
                row = measure_row(problem, phase, options, plan, peak)
                result["rows"].append(row)
                told = f"{row['ms'][OURS]:.2f} ms, {row['GFLOPs'][OURS]:.0f} GFLOP/s" if "ms" in row else f"NOT TIMED: {row['refused'].get(OURS)}"
                print(f"{row['name']:12} {phase:9} {told}", file=sys.stderr, flush=True)
    result["seconds"] = round(time.perf_counter() - started, 1)
    kinds, threads = "-".join(options.ops), f"{options.threads}t" if options.device == "cpu" else ""
    parts = [kinds, options.dtype, threads, "medium" * options.medium, "tuned" * options.tuned_malloc, "quick" * options.quick]
    path = report.save(result, options.out, "_".join(filter(None, parts)), options.device)
    show(result)
    plot = plots.draw(path)
    print(f"\n{result['seconds']:.0f} s; results in {report.shown(path)}" + (f", plot in {report.shown(plot)}" if plot else ""))


if __name__ == "__main__":
    main()
