"""Metrics of a task over a set: each sample once, whatever the number of processes."""

from collections.abc import Iterable

import torch
from torch import nn

from vtkernels.train import distributed
from vtkernels.train.precision import Precision
from vtkernels.train.task import Task


@torch.no_grad()
def validate(task: Task, loader: Iterable, precision: Precision, device: torch.device) -> dict[str, float]:
    """Means of the task's sums, added up in float64 over all batches of all processes. Leaves the task in evaluation mode.

    Processes may have different numbers of batches: nothing is exchanged before the end.
    """
    task.eval()
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    for images, targets in loader:
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with precision.forward():
            found = task.evaluate(images, targets)
        for name, (value, count) in found.items():
            sums[name] = sums.get(name, 0.0) + value.double()
            counts[name] = counts.get(name, 0) + count
    parts = distributed.gathered({name: (float(value), counts[name]) for name, value in sums.items()})
    names = dict.fromkeys(name for part in parts for name in part)
    totals = {name: [sum(column) for column in zip(*(part[name] for part in parts if name in part), strict=True)] for name in names}
    return {name: value / count for name, (value, count) in totals.items() if count}


def finite(module: nn.Module) -> bool:
    """Whether all weights are finite numbers."""
    norms = [param.detach().abs().amax() for param in module.parameters() if param.numel()]
    return bool(torch.stack([norm.full_tensor() if hasattr(norm, "full_tensor") else norm.float() for norm in norms]).isfinite().all())
