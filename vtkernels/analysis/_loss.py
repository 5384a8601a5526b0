"""The mean loss over a data set as a function of a model's weights: its value, its gradient, and products with its Hessian."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vtkernels._core.check import fail
from vtkernels.analysis._memory import Alive
from vtkernels.analysis._model import check_weights
from vtkernels.layers import Linear
from vtkernels.layers.mlp import Mlp

Criterion = Callable[[Tensor, Tensor], Tensor]


def plain_attention() -> Any:
    """A context in which torch's own attention can be differentiated twice: its fused kernels cannot."""
    return sdpa_kernel(SDPBackend.MATH)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without what distributed training or a compiler has put around it."""
    while isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model._orig_mod
    return model


def working_copy(model: nn.Module, dtype: torch.dtype, who: str) -> nn.Module:
    """The model in eval mode and another precision, to be changed at will; the original keeps its weights, mode and gradients."""
    model = unwrapped(model)
    check_weights(model, who)
    copied = copy.deepcopy(model).to(dtype).eval()
    if hasattr(copied, "set_grad_checkpointing"):
        copied.set_grad_checkpointing(False)
    _leave_linear_layers_to_torch(copied)
    return copied


class _PlainMlp(Mlp):
    """The layer as single operations of torch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _leave_linear_layers_to_torch(model: nn.Module) -> None:
    """Our ops compute their forward anew for second derivatives: a third of the time of a product with the Hessian."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = nn.Linear
        elif type(module) is Mlp:
            module.__class__ = _PlainMlp


class _Graph(NamedTuple):
    """Mean loss of a batch and its gradient, which can be differentiated again."""

    loss: Tensor
    gradient: tuple[Tensor, ...]


class Loss:
    """Mean loss of a model in eval mode over all samples of a loader, in float32 or wider whatever the model is in.

    The loader is read once and its batches are kept. Where processes of torch.distributed each have their share of the data, sums go over all.

    Args:
        criterion: of logits and targets, averaging over samples.
        only: patterns, or beginnings, of names of the parameters that are looked at; default all that are trained.
        room: bytes for what products with the Hessian have in common: a third of each. Batches beyond it compute that anew each time.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        criterion: Criterion = F.cross_entropy,
        *,
        only: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        who: str = "sharpness",
        room: int = 0,
    ):
        self.who, self.dtype = who, dtype
        # its own weights, of classes, say, are to be as precise as the logits
        self.criterion = copy.deepcopy(criterion).to(dtype) if isinstance(criterion, nn.Module) else criterion
        trained = {name for name, value in unwrapped(model).named_parameters() if value.requires_grad}
        self.model = working_copy(model, dtype, who)
        named = dict(self.model.named_parameters())
        self.names = [name for name in named if name in trained and chosen(name, only)]
        if not self.names:
            fail(who, "only", "name trained parameters of the model", list(only), f"those trained are {', '.join(sorted(trained)[:4]) or 'none'}")
        for name, value in named.items():
            value.requires_grad_(name in self.names)
        self.parameters = [named[name] for name in self.names]
        self.device = self.parameters[0].device
        self.batches = [(self._widened(images), self._widened(targets)) for images, targets in loader if len(targets)]
        self._graphs: dict[int, _Graph] = {}
        self._room = self._free = room
        self.count = int(self._summed(torch.tensor(float(sum(len(targets) for _, targets in self.batches)), dtype=torch.float64, device=self.device)))
        if not self.count:
            fail(who, "loader", "give at least one sample", "none", "is the split empty, or drop_last set?")

    @property
    def size(self) -> int:
        """Numbers in the parameters looked at."""
        return sum(value.numel() for value in self.parameters)

    def value(self) -> float:
        return self._mean(lambda loss: loss.detach().double())

    def accuracy(self) -> float:
        """Share of samples whose largest logit is that of their class."""
        correct = torch.zeros((), dtype=torch.float64, device=self.device)
        with torch.no_grad(), self._precise():
            for images, targets in self.batches:
                hard = targets if targets.dim() == 1 else targets.argmax(1)
                correct += (self.model(images).argmax(1) == hard).sum()
        return float(self._summed(correct)) / self.count

    def gradient(self) -> Tensor:
        """[size]"""
        return self._mean(lambda loss: self._flat(torch.autograd.grad(loss, self.parameters, materialize_grads=True)), graph=True)

    def product(self, vector: Tensor) -> Tensor:
        """[size]: the Hessian times a vector, by differentiating the gradient's product with it."""
        vector = vector.to(self.device, self.dtype)
        parts = self.split(vector)
        total = torch.zeros_like(vector)
        for index, (_, targets) in enumerate(self.batches):
            graph = self._graph(index)
            with torch.enable_grad(), self._precise():
                along = sum((grad * part).sum() for grad, part in zip(graph.gradient, parts, strict=True))
                if along.requires_grad:
                    kept = index in self._graphs
                    second = torch.autograd.grad(along, self.parameters, retain_graph=kept, materialize_grads=True)
                    total.add_(self._flat(second), alpha=len(targets))
        return self._checked(self._summed(total) / self.count)

    def _graph(self, index: int) -> _Graph:
        """Of one batch: from the last product, where it is kept, or new."""
        if index in self._graphs:
            return self._graphs[index]
        with torch.enable_grad(), self._precise(), Alive() as alive:
            loss = self._loss(*self.batches[index])
            gradient = torch.autograd.grad(loss, self.parameters, create_graph=True, materialize_grads=True)
        graph = _Graph(loss, gradient)
        if alive.now <= self._free:
            self._free -= alive.now
            self._graphs[index] = graph
        return graph

    def forget(self) -> None:
        """Free what products have in common."""
        self._graphs.clear()
        self._free = self._room

    def along_own_gradient(self, radius: float) -> float:
        """Mean over batches of how much each one's loss rises when the weights go `radius` along that batch's own gradient."""
        rises = torch.zeros((), dtype=torch.float64, device=self.device)
        for images, targets in self.batches:
            with torch.enable_grad(), self._precise():
                before = self._loss(images, targets)
                step = self._flat(torch.autograd.grad(before, self.parameters, materialize_grads=True))
            norm = float(step.double().norm())
            with self.moved(step * (radius / norm) if norm > 0 else step), torch.no_grad(), self._precise():
                rises += (self._loss(images, targets).double() - before.detach().double()) * len(targets)
        return float(self._summed(rises)) / self.count

    @contextmanager
    def moved(self, step: Tensor) -> Iterator[None]:
        """Weights plus `step` [size] inside; afterwards every bit is as it was."""
        before = [value.detach().clone() for value in self.parameters]
        # it was of other weights
        self.forget()
        try:
            with torch.no_grad():
                for value, part in zip(self.parameters, self.split(step), strict=True):
                    value += part
            yield
        finally:
            with torch.no_grad():
                for value, old in zip(self.parameters, before, strict=True):
                    value.copy_(old)

    def split(self, vector: Tensor) -> list[Tensor]:
        """A flat vector in the shapes of the parameters."""
        parts = vector.split([value.numel() for value in self.parameters])
        return [part.view_as(value) for part, value in zip(parts, self.parameters, strict=True)]

    def drawn(self, seed: int, signs: bool = False) -> Tensor:
        """[size] of independent normal numbers, or of signs; the same in every process and on every device."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.size,)
        drawn = torch.randint(0, 2, shape, generator=generator) * 2 - 1 if signs else torch.randn(shape, generator=generator)
        return drawn.to(self.device, self.dtype)

    def _flat(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.detach().reshape(-1) for part in parts])

    def _mean(self, of_loss: Callable[[Tensor], Tensor], graph: bool = False) -> Any:
        """Average over samples of what `of_loss` makes of each batch's mean loss: a number, or a tensor."""
        total: Tensor | None = None
        for images, targets in self.batches:
            with torch.set_grad_enabled(graph), self._precise():
                part = of_loss(self._loss(images, targets)) * len(targets)
            total = part if total is None else total.add_(part)
        if total is None:
            # this process has no sample, others do
            total = torch.zeros(self.size, dtype=self.dtype, device=self.device) if graph else torch.zeros((), dtype=torch.float64, device=self.device)
        total = self._checked(self._summed(total) / self.count)
        return total if graph else float(total)

    def _checked(self, value: Tensor) -> Tensor:
        if not value.isfinite().all():
            fail(self.who, "the loss and its derivatives", "be finite", "NaN or infinity", "are there NaN among the images, or weights too large?")
        return value

    def _widened(self, tensor: Tensor) -> Tensor:
        """On the device; numbers, as class probabilities are, too, in the precision of the weights."""
        return tensor.to(self.device, self.dtype) if tensor.is_floating_point() else tensor.to(self.device)

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        logits = self.model(images)
        if logits.dim() == 2 and logits.shape[1] < 2:
            fail(self.who, "model", "tell at least two classes apart", f"{logits.shape[1]} output", "the loss of one class is 0 everywhere")
        return self.criterion(logits, targets)

    @contextmanager
    def _precise(self) -> Iterator[None]:
        with torch.autocast(self.device.type, enabled=False), plain_attention():
            yield

    def _summed(self, value: Tensor) -> Tensor:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(value)
        return value


def chosen(name: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter's name fits one of the patterns, or begins with it; no pattern lets all pass."""
    return not patterns or any(fnmatchcase(name, pattern) or name == pattern or name.startswith(pattern + ".") for pattern in patterns)
