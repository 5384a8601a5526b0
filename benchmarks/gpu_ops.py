"""What of each op is timed on a GPU: shapes, peers, and the bar each row has to clear."""

import argparse
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import class_attn_problem
import drloc
import jsd
import talking_heads
import torch
from attn_problem import TOLERANCE, Wrong
from attn_problem import Problem as WindowProblem
from attn_sides import OURS, Candidate, Gated, admit
from attn_sides import gate as gate_window
from peers.pooled_attention import PEERS as POOLED_PEERS
from timing import Side
from torch import Tensor

import vtkernels as vt
from vtkernels._core import testing
from vtkernels._core.op import OPS
from vtkernels._core.testing import BenchCase
from vtkernels.ops.window_attention import triton as window_triton
from vtkernels.ops.window_attention.common import LARGEST_TILE

PHASES = ("forward", "backward", "training")
BATCH = 128


class Bar(NamedTuple):
    """The least a row has to reach: a share of the copy bandwidth, or how many times faster than a peer."""

    phase: str
    least: float
    over: str | None = None


@dataclass(frozen=True)
class Comparison:
    """One shape of one op."""

    op: str
    case: BenchCase
    bars: tuple[Bar, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.op} {self.case.name}"


@dataclass(frozen=True)
class Family:
    """How an op is compared: its data, the gate that sides pass (problem, phase, peers, backend), and its peers."""

    problem: Callable[[BenchCase, torch.dtype, str], Any]
    gate: Callable[[Any, str, list[str], str], Gated]
    eager: tuple[str, ...]
    compiled: tuple[str, ...]
    # times the formula's backward elements that a backward moves which does not find the forward's inputs in a cache
    backward: int = 1


class PooledProblem:
    """Queries, keys and values as leaves, and the output and gradients in fp64."""

    def __init__(self, case: BenchCase, dtype: torch.dtype, device: str):
        self.case, self.dtype, self.device = case, dtype, device
        self.inputs = {name: value.requires_grad_() for name, value in case.inputs(dtype, device).items()}
        self.grad_out = torch.randn(self.inputs["q"].shape, generator=testing.generator_for(case.name)).to(device, dtype)

    @cached_property
    @torch.enable_grad()
    def truth(self) -> dict[str, Tensor]:
        leaves = {name: value.detach().double().requires_grad_() for name, value in self.inputs.items()}
        out = vt.pooled_attention(**leaves, backend="reference")
        grads = torch.autograd.grad(out, tuple(leaves.values()), self.grad_out.double())
        return {"out": out.detach()} | dict(zip(("d_q", "d_k", "d_v"), grads, strict=True))

    def check(self, results: dict[str, Tensor]) -> dict[str, float]:
        tolerance, errors = TOLERANCE[str(self.dtype).removeprefix("torch.")], {}
        for name, result in results.items():
            errors[name] = float((result.detach().double() - self.truth[name]).norm() / self.truth[name].norm())
            if not (math.isfinite(errors[name]) and errors[name] <= tolerance):
                raise Wrong(f"{name} is off by {errors[name]:.1e} of its norm (allowed {tolerance:.0e})")
        return errors


def _gate_pooled(problem: PooledProblem, phase: str, peers: list[str], backend: str) -> Gated:
    gated = Gated()
    ours: dict[str, Callable[[str], Any]] = {OURS: lambda device: lambda q, k, v: vt.pooled_attention(q, k, v, backend=backend)}
    for name, build in (ours | {peer: POOLED_PEERS[peer] for peer in peers}).items():
        admit(gated, problem, name, lambda build=build: _pooled_candidate(problem, phase, build(problem.device)), phase)
    return gated


def _pooled_candidate(problem: PooledProblem, phase: str, run: Callable[..., Tensor]) -> Candidate:
    leaves = tuple(problem.inputs.values())
    if phase == "forward":
        return Candidate(lambda: run(*leaves), lambda out: {"out": out})
    return Candidate(
        lambda: torch.autograd.grad(run(*leaves), leaves, problem.grad_out),
        lambda grads: dict(zip(("d_q", "d_k", "d_v"), grads, strict=True)),
    )


def _gate_talking_heads(problem: talking_heads.Problem, phase: str, peers: list[str], backend: str) -> Gated:
    options = argparse.Namespace(backend=backend, peers=peers, medium=False)
    return Gated(*talking_heads.admit(problem, phase, options))


def _gate_class(problem: class_attn_problem.Problem, phase: str, peers: list[str], backend: str) -> Gated:
    problem.module.backend = backend
    return class_attn_problem.gate(problem, phase, peers, False)


FAMILIES = {
    "window_attention": Family(
        WindowProblem,
        lambda problem, phase, peers, backend: gate_window(problem, phase, peers, False, backend),
        ("eager", "timm", "timm_sdpa", "sdpa"),
        ("inductor", "inductor_sdpa", "flex"),
    ),
    "class_attention": Family(
        class_attn_problem.Problem,
        _gate_class,
        ("timm", "timm_sdpa", "folded"),
        ("inductor", "inductor_sdpa", "inductor_folded"),
    ),
    "augmix_loss": Family(jsd.Problem, jsd.gate, ("augmix", "timm", "stable"), ("augmix_inductor", "stable_inductor"), backward=2),
    "drloc_pairs": Family(drloc.Problem, drloc.gate, ("published", "gather", "embedding"), ("gather_inductor",)),
    "talking_heads_attention": Family(talking_heads.Problem, _gate_talking_heads, ("eager", "channels_first"), ("inductor",)),
    "pooled_attention": Family(PooledProblem, _gate_pooled, ("eager", "sdpa"), ("inductor", "flex")),
}


def comparisons(batch: int = BATCH) -> list[Comparison]:
    """In the order of what they tell: the first shape of each op, then Swin's, then the rest.

    `batch` is that of Swin's maps; the others' go along.
    """
    found = {op: [Comparison(op, case, _bars(op, case)) for case in _cases(op, batch)] for op in FAMILIES}
    windows = found["window_attention"]
    # what the op is for: a shifted block of the first stage
    windows.sort(key=lambda row: row.case.name != "swin_t/stage1/shift3")
    return [*(rows[0] for rows in found.values()), *windows[1:], *(row for op, rows in found.items() if op != "window_attention" for row in rows[1:])]


def _cases(op: str, batch: int) -> list[BenchCase]:
    package = testing.cases_module(op)
    if batch == BATCH:
        return package.gpu_cases(op)
    usual = package.gpu_cases.__defaults__[-1]
    return package.gpu_cases(op, max(1, usual * batch // BATCH))


def _bars(op: str, case: BenchCase) -> tuple[Bar, ...]:
    """The project's goals on an H200, in bfloat16."""
    if op == "window_attention" and case.model in ("swin_t", "swin_b"):
        early = "/stage1/" in case.name or "/stage2/" in case.name
        shares = (Bar("forward", 0.75 if early else 0.5), Bar("backward", 0.65 if early else 0.45))
        return *shares, Bar("forward", 2.0 if case.name.endswith("shift0") else 4.0, "timm_sdpa"), Bar("training", 3.0, "timm_sdpa")
    least = {"class_attention": 0.7, "drloc_pairs": 0.5}.get(op)
    if least is not None:
        return Bar("forward", least), Bar("backward", least)
    return (Bar("training", 0.6),) if case.name == "k1000/b4096" else ()


def moved(comparison: Comparison, phase: str, dtype: torch.dtype) -> int:
    """Bytes that have to move."""
    backward = FAMILIES[comparison.op].backward * comparison.case.bytes("backward", dtype)
    forward = comparison.case.bytes("forward", dtype)
    return {"forward": forward, "backward": backward, "training": forward + backward}[phase]


def flops(comparison: Comparison, phase: str) -> int:
    return sum(comparison.case.flops[part] for part in (("forward", "backward") if phase == "training" else (phase,)))


def sides(comparison: Comparison, problem: Any, phase: str, compiled: bool, backend: str, device: str) -> Gated:
    """The sides that are right: ours, and eager or compiled peers. The backward is timed of ours alone: a peer's forward keeps what it likes."""
    family = FAMILIES[comparison.op]
    if phase == "backward":
        return _backward(comparison, problem.dtype, backend, device)
    return family.gate(problem, phase, list(family.compiled if compiled else family.eager), backend)


def _backward(comparison: Comparison, dtype: torch.dtype, backend: str, device: str) -> Gated:
    """The op's own backward, through autograd, from a forward that was made once."""
    inputs = comparison.case.inputs(dtype, device)
    leaves = {name: value.requires_grad_() for name, value in testing.differentiable(inputs).items()}
    reason = testing.why_not(comparison.op, inputs, backend) if backend != "auto" else None
    if reason is not None:
        return Gated(refused={OURS: reason})
    outputs = testing.outputs_of(OPS[comparison.op].public(**{**inputs, **leaves}, backend=backend))
    smooth = tuple(output for output in outputs.values() if output.requires_grad)
    upstream = testing.upstream_for(smooth)
    return Gated(sides=[Side(OURS, lambda: torch.autograd.grad(smooth, list(leaves.values()), upstream, retain_graph=True), contextlib.nullcontext)])


def verdicts(comparison: Comparison, phase: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bar of the row beside what was found."""
    found = []
    for bar in comparison.bars:
        if bar.phase == phase:
            value = row["share_of_copy"] if bar.over is None else row["ratio"].get(bar.over)
            what = "share of copy" if bar.over is None else f"times faster than {bar.over}"
            found.append({"what": what, "least": bar.least, "found": value, "met": value is not None and value >= bar.least})
    return found


def build(name: str, device: str, backend: str = "triton") -> None:
    """Run our side of what will be timed of a shape, by the name of its comparison: other processes find the compiled kernels on the disk."""
    comparison = next(row for row in comparisons() if row.name == name)
    family = FAMILIES[comparison.op]
    problem = family.problem(comparison.case, torch.bfloat16, device)
    # whether it is right is asked where it is timed
    problem.check = lambda *results, **options: {}
    gates = [_backward(comparison, problem.dtype, backend, device), *(family.gate(problem, phase, [], backend) for phase in ("forward", "training"))]
    if refused := [gated.refused[OURS] for gated in gates if OURS in gated.refused]:
        raise RuntimeError(refused[0])
    for side in gates[0].sides:
        side.run()
    if comparison.op == "window_attention":
        for side in (side for phase in ("forward", "backward") for side in variants(problem, phase)):
            # a variant may ask for more than the device has
            with contextlib.suppress(Exception), side.context():
                side.run()


def variants(problem: Any, phase: str) -> list[Side]:
    """Window attention's kernels launched in other ways than the launcher chooses, without autograd."""
    call = testing.call_of("window_attention", problem.arguments(problem.qkv.detach(), problem.table.detach(), "triton"))
    if call.tokens > LARGEST_TILE:
        return []
    usual = window_triton.small_plan(phase, call)
    resident = {"maxnreg": 96, "programs": usual.programs * 5 // 4} if phase == "forward" else {"maxnreg": 168, "programs": usual.programs * 3 // 2}
    plans = {
        "usual": usual,
        "1 stage": usual._replace(num_stages=1),
        "3 stages": usual._replace(num_stages=3),
        "twice the programs": usual._replace(programs=2 * usual.programs),
        "half the programs": usual._replace(programs=usual.programs // 2),
        "more resident": usual._replace(**resident),
    }
    return [Side(f"kernel, {name}", _launch(call, problem, phase, plan), torch.no_grad) for name, plan in plans.items()]


def _launch(call: Any, problem: Any, phase: str, plan: "window_triton.Plan") -> Callable[[], Any]:
    if phase == "forward":
        return lambda: window_triton.forward(call, plan)
    statistics_of_none = torch.empty(0, device=call.qkv.device)
    return lambda: window_triton.backward(call, problem.grad_out, None, statistics_of_none, plan)
