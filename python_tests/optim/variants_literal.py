"""A task, and the variants' formulas on one flat float64 vector: what the optimizers are compared with."""

from collections.abc import Callable

import torch
from sam_problems import mlp
from torch import Tensor, nn
from torch.func import functional_call

Gradient = Callable[[Tensor, int], Tensor]


class Task:
    """A small network, and another batch of 8 samples for each step."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        generator = torch.Generator().manual_seed(1)
        torch.manual_seed(2)
        self.model = mlp(torch.float64).to(dtype)
        self.params = list(self.model.parameters())
        self.x = torch.randn(12, 8, 6, generator=generator, dtype=torch.float64).to(dtype)
        self.y = torch.randn(12, 8, 3, generator=generator, dtype=torch.float64).to(dtype)

    def losses(self, t: int, chosen: Tensor | slice | None = None, model: Callable | None = None) -> Tensor:
        x, y = (batch[t] if chosen is None else batch[t][chosen] for batch in (self.x, self.y))
        return ((model or self.model)(x) - y).square().sum(1)

    def loss(self, t: int) -> Tensor:
        return self.losses(t).mean()

    def flat(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.params).detach().clone()

    def losses_at(self, w: Tensor, t: int, chosen: Tensor | slice | None = None) -> Tensor:
        sizes = [param.numel() for param in self.params]
        tensors = {name: part.view_as(param) for (name, param), part in zip(self.model.named_parameters(), w.split(sizes), strict=True)}
        return self.losses(t, chosen, lambda x: functional_call(self.model, tensors, (x,)))

    def gradient(self, w: Tensor, t: int, chosen: Tensor | slice | None = None) -> Tensor:
        w = w.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.losses_at(w, t, chosen).mean(), w)
        return gradient


class Momentum:
    """SGD with momentum on the flat vector."""

    def __init__(self, lr: float = 0.05, momentum: float = 0.9):
        self.lr, self.momentum, self.buffer = lr, momentum, 0.0

    def step(self, w: Tensor, direction: Tensor) -> Tensor:
        self.buffer = self.momentum * self.buffer + direction
        return w - self.lr * self.buffer


SGD = {"base_optimizer": torch.optim.SGD, "lr": 0.05, "momentum": 0.9}


def train(sam, task: Task, steps: range, way: str = "block", scaler=None, on_step=lambda t: None) -> None:
    """`way`: how the two passes are run, of the three that SAM offers."""
    scaled = (lambda loss: loss) if scaler is None else scaler.scale
    for t in steps:
        on_step(t)
        sam.zero_grad()
        scaled(task.loss(t)).backward()
        if way == "block":
            with sam.perturbed() as wanted:
                if wanted:
                    scaled(task.loss(t)).backward()
        elif way == "closure":
            sam.step(lambda t=t: task.loss(t).backward())
            continue
        elif sam.first_step(zero_grad=True):
            scaled(task.loss(t)).backward()
        if scaler is None:
            sam.step()
        else:
            scaler.step(sam)
            scaler.update()


every_way = ("block", "closure", "steps")


def assert_close(task: Task, w: Tensor) -> None:
    torch.testing.assert_close(task.flat(), w, rtol=1e-10, atol=1e-12)
