"""The folder of a run: its last and best checkpoint, and the weights for others to load."""

import errno
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vtkernels.models._checkpoint import SAVED, check_weights_can_be_written, save_model
from vtkernels.train import checkpoint, distributed, sharded
from vtkernels.train.errors import CheckpointError

log = logging.getLogger("vtkernels")


class RunFolder:
    """last.pt, previous.pt and best.pt; of a sharded run, folders last, previous and best. And weights/.

    All processes call the same methods; the first one writes, or each its part.
    """

    def __init__(self, path: Path, task: nn.Module):
        self.path, self.task = path, task
        self.is_sharded = distributed.is_sharded(task)
        self.last, self.previous, self.best = (path / (name if self.is_sharded else f"{name}.pt") for name in ("last", "previous", "best"))

    @property
    def holds_run(self) -> bool:
        return self.last.exists() or self.previous.exists()

    def prepare(self) -> None:
        """Fails where nothing can be written, before hours are spent on what could not be kept."""
        check_weights_can_be_written()
        self._on_first(lambda: checkpoint.probe(self.path))

    def write(self, state: dict[str, Any], best: bool = False) -> Path:
        """The last checkpoint; the one before stays, should this one be damaged. Fails in all processes if it fails in one."""
        if self.is_sharded:
            beside = self.last.with_name(".last.writing")
            self._on_first(lambda: (checkpoint.remove(beside), beside.mkdir(parents=True)))
            # one that cannot write makes this fail in all
            self._on_all(lambda: sharded.write(state, beside, distributed.rank() == 0))
            self._on_first(lambda: checkpoint.take_place(beside, self.last, self.previous))
        else:
            self._on_first(lambda: self._write_whole(state))
        if best:
            self._on_first(lambda: checkpoint.duplicate(self.last, self.best))
        return self.last

    def export(self, model: nn.Module, name: str = SAVED) -> None:
        """The model's weights as they are, as safetensors, with a config from which `create_model` makes it again."""
        state = sharded.whole_state(model) if self.is_sharded else None
        self._on_first(lambda: self._export(model, state, name))

    def read(self, source: Path | None = None) -> dict[str, Any]:
        """The checkpoint `source`, or the newest that can be read."""
        if source is not None and source != self.path and (source.is_file() or (source / sharded.REST).is_file()):
            return self._read(source)
        folder = RunFolder(source, self.task) if source is not None else self
        failures = []
        for path in (folder.last, folder.previous):
            try:
                state = self._read(path)
            except CheckpointError as error:
                failures.append(error)
                continue
            if failures and folder.last.exists():
                log.warning("%s; going on from the one before it, %s", failures[0].strerror, path)
            return state
        told = [error.strerror for error in failures]
        other = folder.path / ("last.pt" if self.is_sharded else "last")
        if other.exists():
            told.append(f"{other} is there, of {'whole' if self.is_sharded else 'sharded'} weights: start with the same `parallel`, on several processes")
        raise CheckpointError(failures[0].errno, f"{folder.path}: no checkpoint can be read: {'; '.join(told)}")

    def how_to_resume(self) -> str:
        if not self.holds_run:
            return "Nothing was saved yet"
        return f"To go on from the last checkpoint: vtkernels train --resume {self.path}, or trainer.resume().fit()"

    def _write_whole(self, state: dict[str, Any]) -> None:
        with checkpoint.atomically(self.last, keep=self.previous) as beside:
            checkpoint.write(state, beside)

    def _export(self, model: nn.Module, state: dict[str, torch.Tensor] | None, name: str) -> None:
        with checkpoint.atomically(self.path / name) as beside:
            save_model(model, beside, state)

    def _read(self, path: Path) -> dict[str, Any]:
        state, failure = None, None
        try:
            state = sharded.read(path, self.task) if self.is_sharded else checkpoint.read(path)
        except CheckpointError as error:
            failure = error
        _all_agree(failure)
        return state

    def _on_first(self, write: Any) -> None:
        self._on_all(write if distributed.rank() == 0 else lambda: None)

    def _on_all(self, write: Any) -> None:
        failure = None
        try:
            write()
        except OSError as error:
            failure = _as_checkpoint_error(error, self.last)
        _all_agree(failure, self.how_to_resume())


def _as_checkpoint_error(error: OSError, path: Path) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    found = CheckpointError(error.errno or errno.EIO, f"{path} could not be written ({error})")
    found.__cause__ = error
    return found


def _all_agree(failure: CheckpointError | None, hint: str = "") -> None:
    """What failed in one process fails in all, or the others would wait for it for ever."""
    told = [entry for entry in distributed.gathered(failure and (failure.errno, failure.strerror)) if entry is not None]
    if told:
        number, message = told[0]
        raise CheckpointError(number, f"{message}. {hint}" if hint else message) from failure
