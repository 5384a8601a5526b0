"""Metrics of a task over a set: each sample once, whatever the number of processes."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from vtkernels.optim import shards
from vtkernels.train import distributed
from vtkernels.train.precision import Precision
from vtkernels.train.task import Task


class StopValidation(Exception):
    """Somebody cannot wait for the metrics."""


@torch.no_grad()
def validate(task: Task, loader: Iterable, precision: Precision, device: torch.device, before_batch: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Means of the task's sums, added up in float64 over all batches of all processes. Leaves the task in evaluation mode.

    Processes may have different numbers of batches, as their shares of the set differ.
    """
    task.eval()
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for images, targets, counted in _in_step(loader, device) if distributed.is_sharded(task) else _alone(loader):
        before_batch()
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with precision.forward():
            found = task.evaluate(images, targets)
        for name, (value, count) in found.items() if counted else ():
            sums[name] = sums.get(name, 0.0) + value.double()
            counts[name] = counts.get(name, 0) + count
    distributed.reshard(task)
    parts = distributed.gathered({name: (float(value), counts[name]) for name, value in sums.items()})
    names = dict.fromkeys(name for part in parts for name in part)
    totals = {name: [sum(column) for column in zip(*(part[name] for part in parts if name in part), strict=True)] for name in names}
    return {name: value / count for name, (value, count) in totals.items() if count}


Counted = tuple[Tensor, Tensor, bool]


def _alone(loader: Iterable) -> Iterator[Counted]:
    for images, targets in loader:
        yield images, targets, True


def _in_step(loader: Iterable, device: torch.device) -> Iterator[Counted]:
    """Sharded weights are gathered in each forward, which takes all processes: those that are through go on with a batch that does not count."""
    batches = iter(loader)
    batch = next(batches, None)
    shapes = [shape for shape in distributed.gathered(batch and tuple(batch[0].shape[1:])) if shape is not None]
    idle = batch or (shapes and (torch.zeros(1, *shapes[0]), torch.zeros(1, dtype=torch.long)))
    while distributed.totals([batch is not None], device)[0]:
        yield *(batch or idle), batch is not None
        batch = next(batches, None)


def finite(module: nn.Module) -> bool:
    """Whether all weights are finite numbers, in all processes."""
    largest = [part.detach().abs().amax() for part in shards.local(list(module.parameters())) if part.numel()]
    odd = torch.stack([value.float() for value in largest]).isfinite().logical_not().sum() if largest else 0
    return distributed.totals([odd], next(module.parameters()).device) == [0]
