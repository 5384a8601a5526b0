"""What a trainer drives: a task holds the model, and says what its loss is."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# by name the sum over some samples, a number or a table of them, and how many samples it is of; or a list with an entry a sample
Sums = dict[str, tuple[Tensor, int] | list[Any]]
Totals = dict[str, tuple[Tensor, int]]


@dataclass
class Outcome:
    """What a task makes of a batch.

    Attributes:
        loss: a scalar with a gradient.
        logits: of the classes.
        features: what the model's head was given: tokens [B, N, D] or a map [B, D, H, W].
        distilled: logits of the head that learns from a teacher, of models that have one.
        logs: scalars worth looking at, without gradients.
        losses: of each sample, of which `loss` is the mean; where the task can tell. ESAM chooses samples by them.
    """

    loss: Tensor
    logits: Tensor | None = None
    features: Tensor | None = None
    distilled: Tensor | None = None
    logs: dict[str, Tensor] = field(default_factory=dict)
    losses: Tensor | None = None


class Task(nn.Module):
    """A model and its loss as one module: `task(images, targets, epoch)` is the training forward.

    Data parallelism wraps the task, and its optimizer gets the task's parameters, so that what an auxiliary loss learns is exchanged and
    optimized like the model itself. A task that adds something to another one holds that one, see `DrlocTask`.

    Modules all of whose parameters are frozen stay in evaluation mode: their statistics do not move, and nothing in them is dropped.
    """

    model: nn.Module
    # names of what is evaluated
    metrics: tuple[str, ...] = ()

    def forward(self, images: Tensor, targets: Any, epoch: float) -> Outcome:
        raise NotImplementedError

    def evaluate(self, images: Tensor, targets: Any) -> Sums:
        """Sums over the samples of a batch, and how many samples they are of; the trainer adds them up over batches and processes.

        What a metric needs of each sample, where it is no sum, is a list: of all batches and processes, in the order of the set.
        """
        raise NotImplementedError

    def conclude(self, totals: Totals, records: dict[str, list[Any]]) -> dict[str, float]:
        """The metrics, from the sums and the lists of the whole set."""
        return {name: float(value / count) for name, (value, count) in totals.items() if count}

    def compile_model(self, **options: Any) -> None:
        """Have torch.compile take over the model's own computation, in place."""
        self.model.compile(**options)

    def train(self, mode: bool = True) -> "Task":
        super().train(mode)
        if mode:
            for module in self.modules():
                params = list(module.parameters())
                if params and not any(param.requires_grad for param in params):
                    module.eval()
        return self


class WrappingTask(Task):
    """A task around another one, to which it leaves everything it does not change."""

    def __init__(self, inner: Task):
        super().__init__()
        self.inner = inner

    @property
    def model(self) -> nn.Module:
        return self.inner.model

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.inner.metrics

    def evaluate(self, images: Tensor, targets: Any) -> Sums:
        return self.inner.evaluate(images, targets)

    def conclude(self, totals: Totals, records: dict[str, list[Any]]) -> dict[str, float]:
        return self.inner.conclude(totals, records)

    def compile_model(self, **options: Any) -> None:
        self.inner.compile_model(**options)


@torch.no_grad()
def classification_sums(logits: Tensor, targets: Tensor) -> Sums:
    """Cross-entropy and how often the class is the first, or among the first five. Of soft targets, the most probable class counts."""
    logits = logits.float()
    labels = targets.argmax(1) if targets.dim() == 2 else targets
    count = len(labels)
    found = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
    return {"loss": (loss, count), "top1": (found[:, 0].sum(), count), "top5": (found.sum(), count)}
