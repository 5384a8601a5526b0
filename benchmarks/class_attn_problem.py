"""The data of one class-attention comparison, the gate a side passes before it is timed, and the sides."""

import math
from functools import cached_property

import torch
from attn_problem import TOLERANCE, Wrong
from attn_sides import MEDIUM, OURS, Candidate, Gated, admit
from peers.class_attention import PEERS, Parameters, timm
from torch import Tensor

import vtkernels as vt
from vtkernels._core.testing import BenchCase, generator_for

PHASES = ("forward", "training")


class Problem:
    """Tokens, the parameters of a module around the op, and the gradient of its output."""

    def __init__(self, case: BenchCase, dtype: torch.dtype, device: str = "cpu"):
        self.case, self.dtype = case, dtype
        inputs = case.inputs(torch.float32)
        self.heads: int = inputs["num_heads"]
        self.x = inputs["tokens"].to(device, dtype).requires_grad_()
        batch, _, channels = self.x.shape
        generator = generator_for(case.name)
        inputs |= {
            "proj_weight": torch.randn(channels, channels, generator=generator) * channels**-0.5,
            "proj_bias": torch.randn(channels, generator=generator),
        }
        names = [f"{layer}.{kind}" for layer in ("q", "k", "v", "proj") for kind in ("weight", "bias")]
        self.parameters: Parameters = {name: inputs[name.replace(".", "_")].to(device, dtype).requires_grad_() for name in names}
        self.grad_out = torch.randn(batch, channels, generator=generator).to(device, dtype)
        self.module = vt.nn.ClassAttention(channels, self.heads, qkv_bias=True, device=device, dtype=dtype)
        for name, value in self.parameters.items():
            setattr(self.module.get_submodule(name.split(".")[0]), name.split(".")[1], torch.nn.Parameter(value.detach()))

    def work(self, phase: str) -> tuple[float, float]:
        """FLOPs and bytes of the op in a phase; the output projection's are not among them."""
        phases = ("forward", "backward") if phase == "training" else (phase,)
        return sum(self.case.flops[p] for p in phases), sum(self.case.bytes(p, self.dtype) for p in phases)

    @cached_property
    def trained(self) -> list[str]:
        """Parameters whose gradient is compared: the key bias has none."""
        return [name for name in self.parameters if name != "k.bias"]

    @cached_property
    @torch.enable_grad()
    def truth(self) -> dict[str, Tensor]:
        """Output and gradients in fp64, keys and values formed."""
        x, parameters = (self.x.detach().double().requires_grad_(), {name: value.detach().double().requires_grad_() for name, value in self.parameters.items()})
        out = timm(self.heads)(x, parameters)
        grads = torch.autograd.grad(out, (x, *(parameters[name] for name in self.trained)), self.grad_out.double())
        return {"out": out.detach()} | dict(zip(("d_x", *self.trained), grads, strict=True))

    def check(self, results: dict[str, Tensor]) -> dict[str, float]:
        """Relative errors against fp64; raises `Wrong` where one is beyond what rounding explains."""
        tolerance = TOLERANCE[str(self.dtype).removeprefix("torch.")]
        errors = {}
        for name, result in results.items():
            difference = result.detach().double() - self.truth[name]
            errors[name] = float(difference.norm() / self.truth[name].norm())
            if not (math.isfinite(errors[name]) and errors[name] <= tolerance):
                raise Wrong(f"{name} is off by {errors[name]:.1e} of its norm (allowed {tolerance:.0e})")
        return errors


def gate(problem: Problem, phase: str, peers: list[str], medium: bool) -> Gated:
    """The sides that are right, ours first, each also under set_float32_matmul_precision("medium") if wanted."""
    gated = Gated()
    for name in (OURS, *peers):
        for suffix, precision in (("", "highest"), (MEDIUM, "medium"))[: 1 + medium]:
            admit(gated, problem, name + suffix, lambda name=name: _candidate(problem, phase, name), phase, precision)
    return gated


def _candidate(problem: Problem, phase: str, name: str) -> Candidate:
    if name == OURS:
        module = problem.module
        run, inputs = lambda: module(problem.x)[:, 0], (problem.x, *(module.get_parameter(trained) for trained in problem.trained))
    else:
        peer = PEERS[name](problem.heads)
        run, inputs = lambda: peer(problem.x, problem.parameters), (problem.x, *(problem.parameters[trained] for trained in problem.trained))
    if phase == "forward":
        return Candidate(run, lambda out: {"out": out})
    return Candidate(
        lambda: torch.autograd.grad(run(), inputs, problem.grad_out),
        lambda grads: dict(zip(("d_x", *problem.trained), grads, strict=True)),
    )
