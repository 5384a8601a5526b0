"""Metrics of a task over a set: each sample once, whatever the number of processes."""

from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import Any

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
    """The task's metrics, from its sums over all batches of all processes, added up in float64. Leaves the task in evaluation mode.

    Processes may have different numbers of batches, as their shares of the set differ.
    """
    task.eval()
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    lists: dict[str, list[Any]] = {}
    for images, targets, counted in _in_step(loader, device) if distributed.is_sharded(task) else _alone(loader):
        before_batch()
        images = images.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True) if isinstance(targets, Tensor) else targets
        with precision.forward():
            found = task.evaluate(images, targets)
        for name, part in found.items() if counted else ():
            if isinstance(part, list):
                lists.setdefault(name, []).extend(part)
                continue
            value, count = part
            sums[name] = sums.get(name, 0.0) + value.double()
            counts[name] = counts.get(name, 0) + count
    distributed.reshard(task)
    parts = distributed.gathered(({name: (value.cpu(), counts[name]) for name, value in sums.items()}, lists))
    totals = {name: tuple(map(sum, zip(*of_all, strict=True))) for name, of_all in _by_name([own for own, _ in parts]).items()}
    return task.conclude(totals, {name: _dealt(of_all) for name, of_all in _by_name([own for _, own in parts]).items()})


def _by_name(parts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What each process that has it has of a name, in the order of the processes."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: [part[name] for part in parts if name in part] for name in names}


def _dealt(hands: list[list[Any]]) -> list[Any]:
    """Samples as they were before they were dealt out to the processes, one after the other."""
    return [entry for row in zip_longest(*hands, fillvalue=_NONE) for entry in row if entry is not _NONE]


_NONE = object()
Counted = tuple[Tensor, Any, bool]


def _alone(loader: Iterable) -> Iterator[Counted]:
    for images, targets in loader:
        yield images, targets, True


def _in_step(loader: Iterable, device: torch.device) -> Iterator[Counted]:
    """Sharded weights are gathered in each forward, which takes all processes: those that are through go on with a batch that does not count."""
    batches = iter(loader)
    batch = next(batches, None)
    # somebody's first sample, for those that have none
    samples = [sample for sample in distributed.gathered(batch and (batch[0][:1].cpu(), batch[1][:1])) if sample is not None]
    idle = batch or (samples and samples[0])
    while distributed.totals([batch is not None], device)[0]:
        yield *(batch or idle), batch is not None
        batch = next(batches, None)


def finite(module: nn.Module) -> bool:
    """Whether all weights are finite numbers, in all processes."""
    largest = [part.detach().abs().amax() for part in shards.local(list(module.parameters())) if part.numel()]
    odd = torch.stack([value.float() for value in largest]).isfinite().logical_not().sum() if largest else 0
    return distributed.totals([odd], next(module.parameters()).device) == [0]
