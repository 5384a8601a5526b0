"""What gpu_check asks of the multi-tensor ops beyond their contract: launches counted, a CUDA graph replayed, SAM steps timed."""

import statistics
from collections.abc import Callable
from typing import Any
from unittest import mock

import sam_problem
import torch
from sam_problem import BASES, Problem
from sam_sides import OURS, PLAIN, Ours, gate
from timing import Side

import vtkernels as vt
from vtkernels.ops.sam import triton as sam_triton

BACKENDS = {"cuda": ("triton", "cuda"), "cpu": ("cpu",)}
PEERS = ("published", "foreach_fused")
MODELS = ("vit_b", "vit_s", "swin_t")
LARGEST_COUNT = 4
REPLAYS = 3
# other ways to launch Triton's kernels
VARIANTS = {
    "2048 elements": sam_triton.Plan(2048),
    "2048 elements, 8 warps": sam_triton.Plan(2048, 8),
    "2 warps, 512 elements": sam_triton.Plan(512, 2),
}


def available(problem: Problem) -> dict[str, str | None]:
    """The backends, each with None or why it cannot make a step."""
    lists = {"params": problem.start, "grads": problem.first, "backups": problem.backups}
    return {backend: vt.explain("sam_perturb_", **lists, rho=problem.rho).reasons["forward"][backend] for backend in BACKENDS[problem.device]}


def checks(device: str) -> dict[str, Callable[[], list[str]]]:
    """By name, each returning what is wrong."""
    problem = Problem("vit_s", sam_problem.MODELS["vit_s"](), BASES["adamw"], torch.float32, device)
    return {
        f"{what} of SAM on {backend}": lambda check=check, backend=backend: check(problem, backend)
        for backend, reason in available(problem).items()
        if reason is None
        for what, check in (("launches", count_launches), ("a CUDA graph", replay_a_graph))
    }


@torch.no_grad()
def count_launches(problem: Problem, backend: str) -> list[str]:
    """Kernels and copies on the device, of calls that need a new table."""
    side = Ours(problem, backend)
    side.step()
    wrong = []
    for name, call, numbers in (("sam_perturb_", side.first, problem.__dict__), ("adamw_step_", side.second, side.settings)):
        changed = {"rho": 1.25 * problem.rho} if name == "sam_perturb_" else {"lr": 0.5 * side.settings["lr"]}
        torch.cuda.synchronize()
        with mock.patch.dict(numbers, changed), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        seen = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        if not 1 <= len(seen) <= LARGEST_COUNT:
            wrong.append(f"{name} on {backend} makes {len(seen)} launches for {problem.tensors} tensors, {LARGEST_COUNT} allowed: {', '.join(seen[:8])}")
    return wrong


@torch.no_grad()
def replay_a_graph(problem: Problem, backend: str) -> list[str]:
    """A captured step, replayed, against the same steps without a graph; other calls come between."""
    captured, plain = Ours(problem, backend), Ours(problem, backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        captured.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for _ in range(REPLAYS):
        graph.replay()
        Ours(problem, backend).step()
    for _ in range(1 + REPLAYS):
        plain.step()
    differing = sum(not torch.equal(a, b) for a, b in zip(captured.params, plain.params, strict=True))
    return [f"a captured step on {backend} differs from the same without a graph in {differing} of {problem.tensors} tensors"] if differing else []


# milliseconds of each side's rounds, and why a side has none
Measure = Callable[[list[Side]], tuple[dict[str, list[float]], dict[str, str]]]


def timed(problem: Problem, measure: Measure, copy: float | None) -> dict[str, Any]:
    """Milliseconds of a SAM step of every side that is right; `copy` is the device's rate in bytes a second, where it is known."""
    sides, errors, refused = [], {}, {}
    for backend, reason in available(problem).items():
        name = f"{OURS} ({backend})"
        if reason is not None:
            refused[name] = reason
            continue
        gated = gate(problem, [], backend)
        errors |= {name: gated.errors[OURS]} if OURS in gated.errors else {}
        refused |= {name: gated.refused[OURS]} if OURS in gated.refused else {}
        sides += [Side(name, side.run, side.context) for side in gated.sides if side.name == OURS]
        if backend == "triton" and OURS in gated.errors:
            sides += [_variant(f"{name}, {what}", Ours(problem, backend), plan) for what, plan in VARIANTS.items()]
    gated = gate(problem, list(PEERS), "reference")
    sides += [side for side in gated.sides if side.name in (*PEERS, PLAIN)]
    refused |= {name: reason for name, reason in gated.refused.items() if name in PEERS}
    errors |= {name: error for name, error in gated.errors.items() if name in (*PEERS, PLAIN)}
    row: dict[str, Any] = {"case": f"{problem.name}, SAM with {problem.base.name}", "tensors": problem.tensors, "numel": problem.numel}
    milliseconds, failed = measure(sides)
    row |= {"bytes": problem.bytes, "errors": errors, "refused": refused | failed}
    row["device_ms"] = {side: statistics.median(times) for side, times in milliseconds.items()}
    row["share_of_copy"] = {side: problem.bytes / (1e-3 * ms) / copy for side, ms in row["device_ms"].items() if side != PLAIN and copy is not None}
    return row


def _variant(name: str, side: Ours, plan: sam_triton.Plan) -> Side:
    def run() -> None:
        with mock.patch.object(sam_triton, "_WALK", plan):
            side.step()

    return Side(name, run, torch.no_grad)
