"""What observers are told, and the clocks for it."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from vtkernels.train.records import Observer, StepRecord
from vtkernels.train.timing import Stopwatch, most_memory
from vtkernels.train.update import Result

log = logging.getLogger("vtkernels")

ACTIVITIES = ("data", "compute", "valid", "save")


class Reporter:
    """Tells observers; one that fails is told nothing more, and the run goes on. `failed` has the names of those."""

    def __init__(self, observers: Iterable[Observer], device: torch.device):
        self.observers, self.device = list(observers), device
        self.failed: list[str] = []
        self.of_epoch, self.of_step = Stopwatch(*ACTIVITIES), Stopwatch(*ACTIVITIES)
        self._images_told = 0

    def tell(self, what: str, *about: Any) -> None:
        for observer in list(self.observers):
            try:
                getattr(observer, what)(*about)
            except Exception:
                log.exception("%s failed in %s; training goes on without it", type(observer).__name__, what)
                self.observers.remove(observer)
                self.failed.append(type(observer).__name__)

    @contextlib.contextmanager
    def during(self, activity: str) -> Iterator[None]:
        with self.of_epoch.during(activity), self.of_step.during(activity):
            yield

    def begin_epoch(self, images: int) -> None:
        """`images`: of it that were seen before, where it is taken up in its middle."""
        self.of_epoch.restart()
        self.of_step.restart()
        self._images_told = images

    def new_images(self, images: int) -> int:
        """How many of the epoch's images were seen since this was asked before."""
        new, self._images_told = images - self._images_told, images
        return new

    def step(self, step: int, epoch: float, loss: float, lr: float, images: float, result: Result) -> None:
        """`images`: of all processes since the last record."""
        if self.observers:
            record = StepRecord(
                step=step,
                epoch=epoch,
                loss=loss,
                lr=lr,
                images_per_second=images / max(self.of_step.elapsed, 1e-9),
                memory=most_memory(self.device),
                grad_norm=None if result.grad_norm is None else float(result.grad_norm),
                logs={name: float(value) for name, value in result.logs.items()},
                seconds=dict(self.of_step.seconds),
            )
            self.tell("on_step", record)
        self.of_step.restart()
