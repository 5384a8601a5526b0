"""Talking-heads attention (CaiT's trunk) against timm's lines, eager and compiled.

    python benchmarks/talking_heads.py --quick               CaiT-XXS24 and S24, three rounds
    python benchmarks/talking_heads.py --medium              peers also under set_float32_matmul_precision("medium")
    python benchmarks/talking_heads.py --dtype bfloat16 --models cait_s24 --batches 8 --threads 1

Both sides go from the qkv projection's output to the output projection's input. A side that is not right is not timed.
"""

import argparse
import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import command
import peaks as machine_peaks
import report
import timing
import torch
from peers.talking_heads import PEERS, Unavailable, forget_compiled
from torch import Tensor

import vtkernels as vt
from vtkernels._core.testing import BenchCase
from vtkernels.ops.talking_heads_attention.cases import bench_cases

OURS, MEDIUM = "vtkernels", "_med"
PHASES = ("forward", "training")
PARAMETERS = ("pre_weight", "pre_bias", "post_weight", "post_bias")
# Relative error (2-norm) a side may have against fp64; its largest single error may be ten times that. Eager PyTorch
# loses 1.2e-5 in the mixing weights' gradients, sums over every score of the batch.
TOLERANCE = {"float32": 3e-5, "bfloat16": 3e-2, "float16": 4e-3}


class Wrong(Exception):
    """A side's result differs from the reference: it is not timed."""


class Problem:
    """The data of one row, the same for every side, and the gate."""

    def __init__(self, case: BenchCase, dtype: torch.dtype, device: str):
        self.case, self.dtype = case, dtype
        inputs = case.inputs(dtype, device)
        self.heads = inputs["num_heads"]
        # eager products want one dtype
        self.qkv, *self.parameters = (inputs[name].to(dtype).requires_grad_() for name in ("qkv", *PARAMETERS))
        batch, tokens, channels3 = self.qkv.shape
        self.grad_out = torch.randn(batch, tokens, channels3 // 3, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def attend(self, qkv: Tensor, parameters: list[Tensor], backend: str) -> Tensor:
        return vt.talking_heads_attention(qkv, *parameters, num_heads=self.heads, backend=backend)

    def work(self, phase: str) -> tuple[float, float]:
        """FLOPs and bytes of a phase; what the backward computes anew counts."""
        phases = ("forward", "backward") if phase == "training" else (phase,)
        return sum(self.case.flops[p] for p in phases), sum(self.case.bytes(p, self.dtype) for p in phases)

    @cached_property
    @torch.enable_grad()
    def truth(self) -> dict[str, Tensor]:
        """Output and gradients in fp64 by the op's reference, image by image."""
        outs, d_qkvs, d_parameters = [], [], None
        for b in range(self.qkv.shape[0]):
            qkv, *parameters = (t.detach().double().requires_grad_() for t in (self.qkv[b : b + 1], *self.parameters))
            out = self.attend(qkv, parameters, "reference")
            d_qkv, *grads = torch.autograd.grad(out, (qkv, *parameters), self.grad_out[b : b + 1].double())
            outs.append(out.detach())
            d_qkvs.append(d_qkv)
            d_parameters = grads if d_parameters is None else [a + b for a, b in zip(d_parameters, grads, strict=True)]
        return {"out": torch.cat(outs), "d_qkv": torch.cat(d_qkvs), **dict(zip(PARAMETERS, d_parameters, strict=True))}

    def check(self, results: dict[str, Tensor]) -> dict[str, float]:
        """Relative errors against fp64; raises `Wrong` where one is beyond what rounding explains."""
        tolerance, errors = TOLERANCE[str(self.dtype).removeprefix("torch.")], {}
        for name, result in results.items():
            truth = self.truth[name]
            # the gradient of the bias before the softmax is zero, and what peers have there is rounding
            scale = self.truth["pre_weight"] if name == "pre_bias" else truth
            difference = result.detach().double() - truth
            errors[name] = float(difference.norm() / scale.norm())
            largest = float(difference.abs().max() / scale.abs().max())
            if not (math.isfinite(errors[name]) and errors[name] <= tolerance and largest <= 10 * tolerance):
                raise Wrong(f"{name} is off by {errors[name]:.1e} of its norm (allowed {tolerance:.0e}), {largest:.1e} of its largest entry at worst")
        return errors


def admit(problem: Problem, phase: str, options: argparse.Namespace) -> tuple[list[timing.Side], dict, dict]:
    """The sides that are right, each with its errors; and why the others are not timed."""
    sides, errors, refused = [], {}, {}

    def one(name: str, attend: Callable[[], Tensor], precision: str) -> None:
        def context() -> contextlib.AbstractContextManager:
            return timing.setting(phase == "training", precision)

        def training() -> tuple[Tensor, ...]:
            return torch.autograd.grad(attend(), (problem.qkv, *problem.parameters), problem.grad_out)

        run: Callable[[], Any] = training if phase == "training" else attend
        try:
            with context():
                result = run()
            named = dict(zip(("d_qkv", *PARAMETERS), result, strict=True)) if phase == "training" else {"out": result}
            errors[name] = problem.check(named)
        except Exception as error:  # whatever stops a peer must not stop the benchmark, and must be shown
            first = (str(error).strip().splitlines() or [""])[0][:300]
            refused[name] = first if isinstance(error, Unavailable) else f"{type(error).__name__}: {first}"
        else:
            sides.append(timing.Side(name, run, context))

    one(OURS, lambda: problem.attend(problem.qkv, problem.parameters, options.backend), "highest")
    for name in options.peers:
        for suffix, precision in (("", "highest"), (MEDIUM, "medium"))[: 1 + options.medium]:
            one(name + suffix, lambda name=name: PEERS[name](problem.qkv, problem.parameters, problem.heads), precision)
    return sides, errors, refused


def saved_bytes(problem: Problem, run: Callable[[], Tensor]) -> int:
    """Memory autograd keeps from the forward to the backward, beyond the tensors the call was given."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = run()
    for tensor in (problem.qkv, *problem.parameters):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(kept.values())


def measure_row(problem: Problem, phase: str, options: argparse.Namespace, peaks: machine_peaks.Peaks) -> dict:
    sides, errors, refused = admit(problem, phase, options)
    row = {"name": problem.case.name, "why": problem.case.why, "phase": phase, "errors": errors, "refused": refused}
    found = vt.explain("talking_heads_attention", problem.qkv, *problem.parameters, num_heads=problem.heads, backend=options.backend)
    row["backend"] = found.chosen("forward" if phase == "forward" else "backward")
    row |= {"heads": problem.heads, "batch": problem.qkv.shape[0], "tokens": problem.qkv.shape[1], "channels": problem.qkv.shape[2] // 3}
    if phase == "training":
        ours = lambda: problem.attend(problem.qkv, problem.parameters, options.backend)  # noqa: E731
        eager = lambda: PEERS["eager"](problem.qkv, problem.parameters, problem.heads)  # noqa: E731
        row["saved_bytes"] = {OURS: saved_bytes(problem, ours), "eager": saved_bytes(problem, eager)}
    if not sides:
        return row
    times = command.sampled(sides, options, row)
    names = list(row["ms"])
    if OURS not in names:
        return row
    flops, moved = problem.work(phase)
    seconds = times.seconds(OURS)
    row |= {"GFLOPs": flops / seconds / 1e9, "GBps": moved / seconds / 1e9, "share_of_peak": flops / seconds / peaks.flops[options.dtype]}
    row["over_eager"] = times.ratio("eager", OURS) if "eager" in names else None
    peers = [name for name in names if name != OURS]
    for key, chosen in (("fastest", [name for name in peers if not name.endswith(MEDIUM)]), ("fastest_with_medium", peers)):
        row[key] = command.versus(times, chosen, OURS)
    return row


def show(result: dict) -> None:
    rows = [row for row in result["rows"] if "GFLOPs" in row]

    columns = ["shape", "phase", "ms", "spread", "over eager", "over fastest peer", "incl. medium", "GFLOP/s", "of peak", "kept, MB", "eager keeps"]
    table = []
    for row in rows:
        kept = [f"{row['saved_bytes'][name] / 1e6:.1f}" for name in (OURS, "eager")] if "saved_bytes" in row else ["-", "-"]
        cells = [
            row["name"],
            row["phase"],
            f"{row['ms'][OURS]:.3f}",
            f"{row['spread'][OURS]:.1%}",
            f"{row['over_eager'] or 0:.2f}x",
            command.best(row["fastest"]),
        ]
        table.append([*cells, command.best(row["fastest_with_medium"]), f"{row['GFLOPs']:.0f}", f"{row['share_of_peak']:.0%}", *kept])
    report.print_table("vtkernels, and how many times faster it is", columns, table)
    command.every_side(rows, lambda row: [row["name"], row["phase"]], ["shape", "phase"])
    for phase in PHASES:
        ratios = [row["fastest"]["ratio"] for row in rows if row["phase"] == phase and row["fastest"]]
        if ratios:
            print(f"{phase:9} over the fastest peer: mean {statistics.geometric_mean(ratios):.2f}x, min {min(ratios):.2f}x over {len(ratios)} shapes")
    command.tell_disturbed(result["rows"])
    command.tell_refused(result["rows"], lambda row: f"{row['name']}/{row['phase']}")


def parse() -> argparse.Namespace:
    parser = command.parser(__doc__, PEERS, "three short rounds, batch 8 only, results in benchmarks/out")
    parser.add_argument("--models", nargs="+", default=["cait_xxs24", "cait_s24"], help="of cait_xxs24, cait_xs24, cait_s24, cait_m36")
    parser.add_argument("--batches", nargs="+", type=int, help="default 8 and 32")
    parser.add_argument("--size", type=int, default=224, help="edge of the images, which have (size // 16)^2 tokens")
    command.add_medium(parser)
    options = command.parse(parser, list(PEERS))
    options.batches = options.batches or ([8] if options.quick else [8, 32])
    if options.quick and options.out == command.RESULTS:
        options.out = command.SCRATCH
    return options


def main() -> None:
    options = parse()
    command.settle(options)
    started = time.perf_counter()
    name = command.file_name(options, "talking_heads", options.dtype, medium=options.medium, quick=options.quick)
    command.keep(run(options), options, name, started, show)


def run(options: argparse.Namespace) -> dict:
    peaks = machine_peaks.measure(options.device)
    result = command.facts("talking_heads_attention", options, peaks=peaks.as_json())
    command.announce("talking-heads attention", result, command.peaks_line(result))
    for case in bench_cases(options.models, options.batches, options.size):
        forget_compiled()
        problem = Problem(case, getattr(torch, options.dtype), options.device)
        for phase in PHASES:
            row = measure_row(problem, phase, options, peaks)
            result["rows"].append(row)
            best = row.get("fastest")
            told = f"{row['ms'][OURS]:.3f} ms" + (f", {best['ratio']:.2f}x {best['name']}" if best else "") if "GFLOPs" in row else "NOT TIMED"
            print(f"{row['name']:24} {phase:9} {told}", file=sys.stderr, flush=True)
    return result


if __name__ == "__main__":
    main()
