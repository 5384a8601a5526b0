"""The parameter lists of the SAM benchmark, their data, what must be moved, and the truth in fp64."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from attn_problem import TOLERANCE, Wrong
from torch import Tensor

Shape = tuple[int, ...]


def linear(inputs: int, outputs: int) -> list[Shape]:
    return [(outputs, inputs), (outputs,)]


def norm(channels: int) -> list[Shape]:
    return [(channels,), (channels,)]


def vit(dim: int, depth: int, patch: int = 16, size: int = 224, classes: int = 1000) -> list[Shape]:
    """In the order of the module, as timm has it."""
    tokens = 1 + (size // patch) ** 2
    block = [*norm(dim), *linear(dim, 3 * dim), *linear(dim, dim), *norm(dim), *linear(dim, 4 * dim), *linear(4 * dim, dim)]
    return [(1, 1, dim), (1, tokens, dim), (dim, 3, patch, patch), (dim,), *depth * block, *norm(dim), *linear(dim, classes)]


def swin(dim: int, depths: tuple[int, ...], window: int = 7, head_dim: int = 32, classes: int = 1000) -> list[Shape]:
    shapes = [(dim, 3, 4, 4), (dim,), *norm(dim)]
    for stage, depth in enumerate(depths):
        c = dim << stage
        if stage:
            shapes += [*norm(2 * c), (c, 2 * c)]
        table = ((2 * window - 1) ** 2, c // head_dim)
        shapes += depth * [*norm(c), table, *linear(c, 3 * c), *linear(c, c), *norm(c), *linear(c, 4 * c), *linear(4 * c, c)]
    return [*shapes, *norm(c), *linear(c, classes)]


def resnet(depths: tuple[int, ...], width: int = 64, classes: int = 1000) -> list[Shape]:
    """With bottlenecks, which widen fourfold."""
    shapes = [(width, 3, 7, 7), *norm(width)]
    inputs = width
    for stage, depth in enumerate(depths):
        c = width << stage
        for block in range(depth):
            shapes += [(c, inputs, 1, 1), *norm(c), (c, c, 3, 3), *norm(c), (4 * c, c, 1, 1), *norm(4 * c)]
            if block == 0:
                shapes += [(4 * c, inputs, 1, 1), *norm(4 * c)]
            inputs = 4 * c
    return [*shapes, *linear(inputs, classes)]


MODELS: dict[str, Callable[[], list[Shape]]] = {
    "vit_s": lambda: vit(384, 12),
    "vit_b": lambda: vit(768, 12),
    "swin_t": lambda: swin(96, (2, 2, 6, 2)),
    "resnet50": lambda: resnet((3, 4, 6, 3)),
    "tiny": lambda: vit(32, 2, size=64, classes=10),  # to try the script, not the kernels
}
# what a kernel that walks chunks gets wrong first: nothing, one number, sizes around its vectors and chunks
ODD: list[Shape] = [(3, 5), (0,), (), (1,), (7,), (2, 0, 3), (4, 3, 2, 2), (33, 9), (16385,), (65537,)]


@dataclass(frozen=True)
class Base:
    """The optimizer below SAM, with torch's name for its settings."""

    name: str
    optimizer: type[torch.optim.Optimizer]
    settings: dict[str, Any]
    states: int  # tensors like the parameter that it keeps

    @property
    def streams(self) -> int:
        """Passes over the parameters' bytes that no implementation of SAM in two separate steps can avoid.

        Norm: read g. Perturb: read w and g, write w and the copy. Restore and step: read the copy, the second g and the states,
        write w and the states.
        """
        return 1 + 4 + (3 + 2 * self.states)


# Rates at which one step moves the weights (of variance 1, gradients of variance 0.01) about as far as they are large, and at
# which ten thousand steps with the same gradients stay finite: weight decay holds them.
BASES = {
    "sgd": Base("sgd", torch.optim.SGD, {"lr": 1.0, "momentum": 0.9, "weight_decay": 5e-4}, 1),
    "adamw": Base("adamw", torch.optim.AdamW, {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05}, 2),
}
EPS = 1e-12
# What a side may be off by after the first pass if its dtype allows no more: torch sums the squares of a tensor in fp32, one after
# another, and is off by 5e-6 with ViT-S and by 4e-5 with ViT-B.
NORM_TOLERANCE = 1e-4


class Problem:
    """A parameter list, its gradients of both passes, and a base optimizer.

    Gradients are read only and shared by all sides, and so are the backups, which a call writes before it reads them. Parameters
    and states belong to each side. The two gradients are different memory, as two backward passes leave them: a second pass that
    finds the first one's gradients in the cache would flatter whoever reads them twice.
    """

    def __init__(self, name: str, shapes: list[Shape], base: Base, dtype: torch.dtype, device: str):
        self.name, self.base, self.dtype, self.device = name, base, dtype, device
        generator = torch.Generator(device).manual_seed(0)

        def draw(scale: float) -> list[Tensor]:
            return [torch.randn(shape, generator=generator, device=device).mul_(scale).to(dtype) for shape in shapes]

        self.start, self.first, self.second = draw(1.0), draw(0.1), draw(0.1)
        self.tensors, self.numel = len(shapes), sum(map(math.prod, shapes))
        # moves a weight by half of its size, so that a wrong perturbation shows in every dtype; the time does not depend on it
        self.rho = 0.5 * math.sqrt(self.numel)
        self._backups: list[Tensor] | None = None

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """What must be moved in one SAM step."""
        return self.base.streams * self.numel * self.itemsize

    @property
    def backups(self) -> list[Tensor]:
        if self._backups is None:
            self._backups = [torch.empty_like(tensor) for tensor in self.start]
        return self._backups

    def forget_backups(self) -> None:
        self._backups = None

    def copies(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self.start]

    def zeros(self) -> list[Tensor]:
        # full, not zeros: memory that was never written is one page of zeros to the reader
        return [torch.full_like(tensor, 0.0) for tensor in self.start]

    def norm(self) -> float:
        return math.sqrt(sum(float(g.double().square().sum()) for g in self.first))

    def perturbed(self) -> Iterator[Tensor]:
        """The parameters after the first pass of the first step, in fp64, one at a time: a whole list would take gigabytes."""
        scale = self.rho / (self.norm() + EPS)
        for w, g in zip(self.start, self.first, strict=True):
            yield w.double() + scale * g.double()

    def stepped(self, steps: int) -> Iterator[Tensor]:
        """The parameters after whole steps: the base optimizer's from where each began, with the second gradient alone."""
        for w, g in zip(self.start, self.second, strict=True):
            yield _stepped(self.base, w.double(), g.double(), steps)

    def check(self, tensors: list[Tensor], truth: Iterator[Tensor], what: str, at_least: float = 0.0) -> float:
        """The worst tensor's root mean square error over that of the change of all; raises `Wrong` beyond what rounding explains."""
        tolerance = max(at_least, TOLERANCE[str(self.dtype).removeprefix("torch.")])
        worst, worst_at, change, largest = 0.0, 0, 0.0, 0.0
        for i, (tensor, true, start) in enumerate(zip(tensors, truth, self.start, strict=True)):
            if tensor.shape != true.shape:
                raise Wrong(f"{what}: tensor {i} has shape {list(tensor.shape)}, not {list(true.shape)}")
            if not true.numel():
                continue
            difference = tensor.detach().double() - true
            error = float(difference.square().mean().sqrt())
            if not math.isfinite(error):
                raise Wrong(f"{what}: tensor {i} of shape {list(true.shape)} is not finite")
            if error > worst:
                worst, worst_at = error, i
            largest = max(largest, float(difference.abs().max()))
            change += float((true - start.double()).square().sum())
        change = math.sqrt(change / self.numel)
        if worst > tolerance * change or largest > 10 * tolerance * change:
            where = f"tensor {worst_at} of shape {list(tensors[worst_at].shape)}"
            shares = f"{worst / change:.1e} of the change (allowed {tolerance:.0e}), {largest / change:.1e} in one number at worst"
            raise Wrong(f"{what}: {where} is off by {shares}")
        return worst / change


def _stepped(base: Base, w: Tensor, g: Tensor, steps: int) -> Tensor:
    lr, decay = base.settings["lr"], base.settings["weight_decay"]
    if base.name == "sgd":
        buffer = torch.zeros_like(w)
        for _ in range(steps):
            buffer = base.settings["momentum"] * buffer + g + decay * w
            w = w - lr * buffer
        return w
    (beta1, beta2), eps = base.settings["betas"], base.settings["eps"]
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, steps + 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        w = w * (1 - lr * decay) - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
    return w
