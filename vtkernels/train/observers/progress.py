"""How a run is doing, on the terminal."""

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from vtkernels.train.observers import words
from vtkernels.train.records import EpochRecord, History, Observer, StepRecord

if TYPE_CHECKING:
    from vtkernels.train.trainer import Trainer


class Progress(Observer):
    """A live line with loss, accuracy, learning rate, speed, memory and the time left, above it a line for each epoch.

    Where the output is no terminal: a line for each epoch, and one now and then within long ones. On processes but the first: nothing.

    Args:
        stream: where to write; None: the standard output.
        every: seconds between lines within an epoch where there is no terminal.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 60.0):
        self.stream, self.every = stream, every
        self._live, self._task = None, None
        self._trainer: Trainer | None = None
        self._metric: list[str] = []

    def on_start(self, trainer: "Trainer") -> None:
        if trainer.rank > 0:
            return
        self._trainer, self._first = trainer, trainer.progress.update
        self._began = self._told = time.monotonic()
        stream = self.stream or sys.stdout
        if stream.isatty():
            self._live = _live_line(stream)
            self._task = self._live.add_task(self._where(0.0), total=trainer.total_updates, completed=self._first, facts="starting")
            self._live.start()
        count = sum(param.numel() for param in trainer.model.parameters())
        going_on = f", going on after update {self._first}" if self._first else ""
        self._say(f"{type(trainer.model).__name__}, {count / 1e6:.2f} M parameters, {trainer.total_updates} updates on {trainer.device}{going_on}")

    def on_step(self, record: StepRecord) -> None:
        if self._trainer is None:
            return
        # what matters most comes first: a narrow terminal cuts the rest off
        facts = [f"loss {record.loss:.4f}", *self._metric, f"{words.duration(self._seconds_left(record.step))} left"]
        facts += [words.rate(record.images_per_second), f"lr {record.lr:.2e}", words.memory(record.memory)]
        if self._live is not None:
            self._live.update(self._task, completed=record.step, description=self._where(record.epoch), facts="  ".join(facts))
        elif time.monotonic() - self._told > self.every:
            self._say(f"{self._where(record.epoch)}, update {record.step}/{self._trainer.total_updates}: " + "  ".join(facts))

    def on_epoch(self, record: EpochRecord) -> None:
        if self._trainer is None:
            return
        facts = [f"loss {record.train['loss']:.4f}"] if "loss" in record.train else []
        for title, metrics in (("valid", record.valid), ("ema", record.ema)):
            facts += [f"{title} {name} {words.shown(name, value)}" for name, value in (metrics or {}).items() if name != "top5"]
        monitor = self._trainer.settings.monitor
        latest = (record.ema or record.valid or {}).get(monitor)
        if latest is not None:
            self._metric = [f"{monitor} {words.shown(monitor, latest)}"]
        facts += [words.duration(sum(record.seconds.values()))] + ["best so far"] * record.best
        self._say(f"epoch {record.epoch}/{self._trainer.settings.epochs}: " + "  ".join(facts))
        if self._live is not None:
            self._live.update(self._task, completed=record.step)

    def on_end(self, trainer: "Trainer", history: History) -> None:
        if self._trainer is None:
            return
        monitor, best = trainer.settings.monitor, history.best
        found = (best.ema or best.valid or {}).get(monitor) if best else None
        told = f"; best {monitor} {words.shown(monitor, found)} in epoch {best.epoch}" if found is not None else ""
        early = f"; stopped early: {history.stopped}" if history.stopped else ""
        self._say(f"trained in {words.duration(time.monotonic() - self._began)}{told}{early}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _where(self, epoch: float) -> str:
        return f"epoch {min(int(epoch) + 1, self._trainer.settings.epochs)}/{self._trainer.settings.epochs}"

    def _seconds_left(self, step: int) -> float:
        """From the mean since training began or was resumed, evaluations and savings included."""
        done = step - self._first
        return (time.monotonic() - self._began) / done * (self._trainer.total_updates - step) if done else float("inf")

    def _say(self, text: str) -> None:
        self._told = time.monotonic()
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream or sys.stdout, flush=True)


def _live_line(stream: TextIO) -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Live
    except ImportError as error:
        raise ImportError("Progress: expected rich to be installed, got no such package; try pip install 'vtkernels[train]'") from error
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), TextColumn("{task.fields[facts]}"))
    return Live(*columns, console=Console(file=stream), refresh_per_second=4)
