"""The sides of one comparison of SAM steps: ours and the peers, each gated before it may be timed, and the yardsticks beside them."""

import importlib
import os
from collections.abc import Callable

import sam_problem
import timing
import torch
from attn_problem import Wrong
from attn_sides import Gated
from peers import sam as peers
from peers.window_attention import Unavailable
from sam_problem import Problem

import vtkernels as vt
from vtkernels._core import native

OURS, CLASS = "vtkernels", "vtkernels.SAM"
# one step of the fused base optimizer, without SAM
PLAIN = "plain"
CONTROLS = ("control", "control_stream")
STEPS = 2


class Ours(peers.Side):
    """The ops alone: perturb with the copy, then restore and step in one pass."""

    def __init__(self, problem: Problem, backend: str):
        self.problem, self.backend = problem, backend
        self.params, self.backups = problem.copies(), problem.backups
        self.states = [problem.zeros() for _ in range(problem.base.states)]
        self.settings = dict(problem.base.settings)
        if problem.base.name == "sgd":
            self.base_step = vt.sgd_step_
        else:
            self.base_step = vt.adamw_step_
            self.states.append([torch.zeros((), device=problem.device) for _ in self.params])

    def first(self) -> None:
        vt.sam_perturb_(self.params, self.problem.first, self.backups, rho=self.problem.rho, eps=sam_problem.EPS, backend=self.backend)

    def second(self) -> None:
        self.base_step(self.params, self.problem.second, *self.states, backups=self.backups, backend=self.backend, **self.settings)

    def stand_still(self) -> None:
        """From now on the base step moves nothing: what is left of a SAM step is the way there and back."""
        self.settings["lr"] = 0.0


class OurClass(peers.Side):
    """vtkernels.optim.SAM as a training loop uses it."""

    def __init__(self, problem: Problem):
        optim = importlib.import_module("vtkernels.optim")
        if not hasattr(optim, "SAM"):
            raise Unavailable("vtkernels.optim has no SAM")
        self.problem = problem
        self.params = [torch.nn.Parameter(tensor) for tensor in problem.copies()]
        self.sam = optim.SAM(self.params, problem.base.optimizer, rho=problem.rho, **problem.base.settings)

    def first(self) -> None:
        for p, g in zip(self.params, self.problem.first, strict=True):
            p.grad = g
        self.sam.first_step()

    def second(self) -> None:
        for p, g in zip(self.params, self.problem.second, strict=True):
            p.grad = g
        self.sam.second_step()

    def stand_still(self) -> None:
        for group in self.sam.param_groups:
            group["lr"] = 0.0


Build = Callable[[Problem], peers.Side]


def ours(backend: str) -> dict[str, Build]:
    return {OURS: lambda problem: Ours(problem, backend), CLASS: OurClass}


@torch.no_grad()
def gate(problem: Problem, names: list[str], backend: str) -> Gated:
    """Every side that is right. Ours must also bring back each bit, in the memory where it was, of odd sizes too."""
    gated = Gated()
    odd = Problem("odd", sam_problem.ODD, problem.base, problem.dtype, problem.device)
    for name, build in ours(backend).items():
        _admit(gated, problem, name, build, lambda build=build: [check_return(build, some) or check_values(build(some), some) for some in (odd, problem)])
    for name in names:
        _admit(gated, problem, name, peers.PEERS[name], lambda: None)
    _admit(gated, problem, PLAIN, peers.Plain, lambda: None)
    return gated


def _admit(gated: Gated, problem: Problem, name: str, build: Build, check_before: Callable[[], object]) -> None:
    try:
        check_before()
        side = build(problem)
        gated.errors[name] = check_values(side, problem)
    except Exception as error:  # whatever stops a peer must not stop the benchmark, and must be shown
        lines = str(error).strip().splitlines() or [""]
        gated.refused[name] = lines[0][:300] if isinstance(error, Unavailable) else f"{type(error).__name__}: {lines[0][:300]}"
    else:
        gated.sides.append(timing.Side(name, side.step, torch.no_grad))


def check_values(side: peers.Side, problem: Problem) -> dict[str, float]:
    """Two whole steps against fp64; raises `Wrong`."""
    side.first()
    errors = {}
    if not isinstance(side, peers.Plain):
        errors["perturbed"] = problem.check(side.params, problem.perturbed(), "after the first pass", sam_problem.NORM_TOLERANCE)
    side.second()
    for _ in range(STEPS - 1):
        side.step()
    return errors | {"stepped": problem.check(side.params, problem.stepped(STEPS), f"after {STEPS} steps")}


def check_return(build: Build, problem: Problem) -> None:
    """A SAM step whose base stands still leaves every bit, in the memory where it was."""
    side = build(problem)
    side.stand_still()
    where = [p.data_ptr() for p in side.params]
    side.first()
    if problem.numel and all(torch.equal(p, w) for p, w in zip(side.params, problem.start, strict=True)):
        raise Wrong("the first pass moved nothing")
    side.second()
    for i, (p, w, address) in enumerate(zip(side.params, problem.start, where, strict=True)):
        if not torch.equal(p, w):
            raise Wrong(f"tensor {i} of shape {list(w.shape)} did not come back to the bit")
        if p.data_ptr() != address:
            raise Wrong(f"tensor {i} of shape {list(w.shape)} lies elsewhere after the step")


def controls(problem: Problem) -> list[timing.Side]:
    """y += x in memory as long as all passes of a SAM step together, with and without streaming stores where there is a choice."""
    # two reads and a write for each element
    x, y = (torch.full((problem.bytes // 12,), 1e-3, device=problem.device) for _ in range(2))
    if problem.device == "cpu" and has_add_to():
        add_to = torch.ops.vtkernels_native.add_to.default
        return [timing.Side(name, lambda stream=stream: add_to(y, x, stream)) for name, stream in zip(CONTROLS, (False, True), strict=True)]
    return [timing.Side(CONTROLS[0], lambda: torch.add(y, x, out=y))]


def has_add_to() -> bool:
    return native.why_missing() is None and hasattr(torch.ops.vtkernels_native, "add_to")


def running_backend(problem: Problem, backend: str) -> str:
    """Which backend `backend` comes to: for the perturbation, and for the base step where that is another."""
    lists = {"params": problem.start, "grads": problem.second, "backend": backend}
    found = [vt.explain("sam_perturb_", backups=problem.backups, rho=problem.rho, **lists)]
    like = problem.start  # only asked, nothing is written
    if problem.base.name == "sgd":
        found.append(vt.explain("sgd_step_", momentum_buffers=like, backups=problem.backups, lr=1.0, momentum=0.9, **lists))
    else:
        steps = [torch.zeros((), device=problem.device) for _ in like]
        found.append(vt.explain("adamw_step_", exp_avgs=like, exp_avg_sqs=like, steps=steps, backups=problem.backups, lr=1.0, **lists))
    return "/".join(dict.fromkeys(str(explanation.chosen()) for explanation in found))


@torch.no_grad()
def extra_memory(problem: Problem, name: str, backend: str) -> float:
    """Bytes per parameter a side takes at most during two steps, beyond parameters, gradients and the base optimizer's states."""
    problem.forget_backups()
    build = (ours(backend) | peers.PEERS)[name]

    def run() -> peers.Side:
        side = build(problem)
        for _ in range(STEPS):
            side.step()
        return side

    peak = (_cuda_peak if problem.device == "cuda" else _cpu_peak)(run)
    problem.forget_backups()
    return peak / problem.numel - (1 + problem.base.states) * problem.itemsize


def _cuda_peak(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(run: Callable[[], object]) -> int:
    """From torch's own allocations, in their order."""
    # or the profiler would announce on stderr that it begins, and that it ends
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    events = sorted((event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"), key=lambda event: event.start_ns())
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    del kept
    return peak
