"""The shapes of the window-attention benchmark, the data of one of them, and the gate a side passes before it is timed."""

import math
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vtkernels as vt
from vtkernels._core.testing import BenchCase
from vtkernels.ops.window_attention.cases import bench_cases

PHASES = ("forward", "training")

# Relative error (2-norm) a side may have against fp64; its largest single error may be ten times that. Eager PyTorch
# loses 3e-7, 8e-3 and 1e-3; a wrong mask or index costs 0.1 and more.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}


class Wrong(Exception):
    """A side's result differs from the reference: it is not timed."""


class Shape(NamedTuple):
    batch: int
    size: int  # edge of the square map
    channels: int
    heads: int
    window: int
    shift: int

    @property
    def windows(self) -> int:
        """Windows of one image."""
        return (self.size // self.window) ** 2

    @property
    def tokens(self) -> int:
        """Tokens of one window."""
        return self.window**2

    def __str__(self) -> str:
        return f"B={self.batch} {self.size}x{self.size} C={self.channels} h={self.heads} window={self.window} shift={self.shift}"


MODELS = ("swin_t", "swin_s", "swin_b", "swin_l")


def model_cases(model: str, batch: int) -> list[BenchCase]:
    """Every stage at 224 (window 7) and 384 (window 12), unshifted and shifted."""
    return bench_cases((model, f"{model}_384"), batch)


def issue_cases(batch: int) -> list[BenchCase]:
    """Swin-T at 224, and three larger windows: 8 on Swin-T's first stage, 12 on Swin-B's first and third."""
    small = max(1, batch // 4)
    return [
        *bench_cases(("swin_t",), batch),
        *(case for case in bench_cases(("swin_t_256",), batch) if "/stage1/" in case.name),
        *(case for case in bench_cases(("swin_b_384",), small) if "/stage1/" in case.name or "/stage3/" in case.name),
    ]


def partition(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] -> [B * windows, N, C]"""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window * window, channels)


def merge(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partition`."""
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, windows.shape[-1])


class Problem:
    """Both sides' inputs: each gets what it would have inside a model.

    A peer shifts and partitions x *before* the qkv projection (not timed), and so gets x and the projection's output in
    window order, and in the backward the gradient of the partitioned x besides the output's. The fused op gets the
    projection's output on the tokens where they are.
    """

    def __init__(self, case: BenchCase, dtype: torch.dtype, device: str):
        self.case, self.dtype, self.device = case, dtype, device
        inputs = case.inputs(dtype, device)
        self.qkv = inputs["qkv"].requires_grad_()
        batch, size, _, channels3 = self.qkv.shape
        self.shape = Shape(batch, size, channels3 // 3, inputs["num_heads"], inputs["window_size"], inputs["shift_size"])
        # 25 times Swin's initial values: a bias that is forgotten must show in half precision too
        self.table = torch.nn.Parameter((25.0 * inputs["bias_table"]).to(dtype))
        # SwinV2's, as a constant: peers would go over their scores once more for its gradient
        self.logit_scale: Tensor | None = inputs["logit_scale"].to(dtype) if "logit_scale" in inputs else None
        generator = torch.Generator(device).manual_seed(0)
        self.x, self.grad_out = (torch.randn(batch, size, size, channels3 // 3, generator=generator, device=device).to(dtype) for _ in range(2))
        self.x.requires_grad_()
        self.qkv_windows = self.to_windows(self.qkv.detach()).requires_grad_()
        self.grad_x_windows = self.to_windows(self.grad_out)

    def work(self, phase: str) -> tuple[float, float]:
        """FLOPs and bytes of a phase; the scores the backward computes anew count."""
        phases = ("forward", "backward") if phase == "training" else (phase,)
        return sum(self.case.flops[p] for p in phases), sum(self.case.bytes(p, self.dtype) for p in phases)

    def arguments(self, qkv: Tensor, table: Tensor, backend: str) -> dict[str, Any]:
        shape, logit_scale = self.shape, None if self.logit_scale is None else self.logit_scale.to(qkv.dtype)
        sizes = {"num_heads": shape.heads, "window_size": shape.window, "shift_size": shape.shift}
        return {"qkv": qkv, "bias_table": table, "logit_scale": logit_scale, **sizes, "backend": backend}

    def attend(self, qkv: Tensor, table: Tensor, backend: str) -> Tensor:
        return vt.window_attention(**self.arguments(qkv, table, backend))

    def to_windows(self, x: Tensor) -> Tensor:
        shift = self.shape.shift
        return partition(x.roll((-shift, -shift), (1, 2)), self.shape.window)

    def from_windows(self, windows: Tensor) -> Tensor:
        shift = self.shape.shift
        return merge(windows, self.shape.window, self.shape.size, self.shape.size).roll((shift, shift), (1, 2))

    @cached_property
    @torch.enable_grad()
    def truth(self) -> dict[str, Tensor]:
        """Output and gradients in fp64 by the op's reference, image by image: all at once would take gigabytes."""
        images = []
        for b in range(self.shape.batch):
            qkv, table = (t.detach().double().requires_grad_() for t in (self.qkv[b : b + 1], self.table))
            out = self.attend(qkv, table, "reference")
            images.append((out.detach(), *torch.autograd.grad(out, (qkv, table), self.grad_out[b : b + 1].double())))
        outs, d_qkvs, d_tables = zip(*images, strict=True)
        return {"out": torch.cat(outs), "d_qkv": torch.cat(d_qkvs), "d_table": sum(d_tables)}

    def check(self, results: dict[str, Tensor]) -> dict[str, float]:
        """Relative errors against fp64; raises `Wrong` where one is beyond what rounding explains."""
        tolerance = TOLERANCE[str(self.dtype).removeprefix("torch.")]
        errors = {}
        for name, result in results.items():
            truth = self.truth[name]
            difference = result.detach().double() - truth
            errors[name] = float(difference.norm() / truth.norm())
            largest = float(difference.abs().max() / truth.abs().max())
            if not (math.isfinite(errors[name]) and errors[name] <= tolerance and largest <= 10 * tolerance):
                raise Wrong(f"{name} is off by {errors[name]:.1e} of its norm (allowed {tolerance:.0e}), {largest:.1e} of its largest entry at worst")
        return errors
