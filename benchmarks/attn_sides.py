"""The sides of one comparison of window attention: the op, its raw kernel and the peers, each gated before it may be timed."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from attn_problem import Problem
from peers.window_attention import PEERS, Unavailable
from timing import Side, setting
from torch import Tensor

import vtkernels as vt
from vtkernels._core import native, testing
from vtkernels.ops.window_attention import native as window_native
from vtkernels.ops.window_attention.common import statistics_shape

OURS = "vtkernels"
MEDIUM = "_med"  # suffix of a peer under set_float32_matmul_precision("medium")


@dataclass(frozen=True)
class Candidate:
    """Work, and where in its result the gate finds the output or the gradients."""

    run: Callable[[], Any]
    results: Callable[[Any], dict[str, Tensor]]


@dataclass
class Gated:
    """The sides that are right, with their errors; and why the others are not timed."""

    sides: list[Side] = field(default_factory=list)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def gate(problem: Problem, phase: str, peers: list[str], medium: bool, backend: str) -> Gated:
    gated = Gated()
    admit(gated, problem, OURS, lambda: _ours(problem, phase, backend), phase)
    for name in peers:
        admit(gated, problem, name, lambda name=name: _peer(problem, phase, name), phase)
        if medium:
            admit(gated, problem, name + MEDIUM, lambda name=name: _peer(problem, phase, name), phase, "medium")
    return gated


def gate_raw(problem: Problem, phase: str) -> Gated:
    """The native kernel alone: no autograd, no dispatch in Python, memory allocated beforehand."""
    gated = Gated()
    admit(gated, problem, OURS, lambda: _raw(problem, phase), "forward")
    return gated


def admit(gated: Gated, problem: Problem, name: str, build: Callable[[], Candidate], phase: str, precision: str = "highest") -> None:
    """Run a side once (which compiles what wants to be compiled) and compare; a side that fails is listed with its reason."""

    def context() -> contextlib.AbstractContextManager:
        return setting(gradients=phase == "training", precision=precision)

    try:
        with context():
            candidate = build()
            gated.errors[name] = problem.check(candidate.results(candidate.run()))
    except Exception as error:  # whatever stops a peer must not stop the benchmark, and must be shown
        lines = str(error).strip().splitlines() or [""]
        gated.refused[name] = lines[0][:300] if isinstance(error, Unavailable) else f"{type(error).__name__}: {lines[0][:300]}"
    else:
        gated.sides.append(Side(name, candidate.run, context))


def _ours(problem: Problem, phase: str, backend: str) -> Candidate:
    qkv, table = problem.qkv, problem.table
    if phase == "forward":
        return Candidate(lambda: problem.attend(qkv, table, backend), lambda out: {"out": out})
    return Candidate(
        lambda: torch.autograd.grad(problem.attend(qkv, table, backend), (qkv, table), problem.grad_out),
        lambda grads: dict(zip(("d_qkv", "d_table"), grads, strict=True)),
    )


def _peer(problem: Problem, phase: str, name: str) -> Candidate:
    run = PEERS[name](problem, phase)
    inputs = (problem.x, problem.qkv_windows, problem.table)
    if phase == "forward":
        return Candidate(lambda: run(*inputs), lambda outputs: {"out": outputs[1]})
    return Candidate(
        lambda: torch.autograd.grad(run(*inputs), inputs, (problem.grad_x_windows, problem.grad_out)),
        lambda grads: {"d_qkv": problem.from_windows(grads[1]), "d_table": grads[2]},
    )


def _raw(problem: Problem, phase: str) -> Candidate:
    if reason := native.why_missing():
        raise Unavailable(reason)
    call = testing.call_of("window_attention", problem.arguments(problem.qkv.detach(), problem.table.detach(), "cpu"))
    # the launcher's own argument order, without its allocations
    arguments = (*window_native._parameters(call), *window_native._scalars(call))
    out, statistics = torch.empty_like(problem.grad_out), torch.empty(statistics_shape(call))
    d_qkv, d_table = torch.empty_like(call.qkv), torch.empty(call.bias_table.shape)
    if phase == "forward":
        launch = torch.ops.vtkernels_native.window_attention_forward.default
        return Candidate(lambda: launch(call.qkv, *arguments, out, statistics), lambda _: {"out": out})
    launch = torch.ops.vtkernels_native.window_attention_backward.default
    return Candidate(lambda: launch(problem.grad_out, call.qkv, *arguments, d_qkv, d_table, None, None, None), lambda _: {"d_qkv": d_qkv, "d_table": d_table})


def running_backend(problem: Problem, backend: str) -> str:
    """Which backend `backend` comes to for this problem: the forward's, and the backward's where that is another."""
    found = vt.explain("window_attention", **problem.arguments(problem.qkv, problem.table, backend))
    return "/".join(dict.fromkeys(str(found.chosen(phase)) for phase in ("forward", "backward")))


def saved_bytes(problem: Problem, run: Callable[[], Any], given: tuple[Tensor, ...]) -> int:
    """Memory autograd keeps from the forward to the backward, beyond the tensors the call was given."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = run()
    for tensor in given:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(kept.values())
