"""Every record of a run as a line of JSON."""

import contextlib
import json
import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtkernels.train.records import EpochRecord, History, Observer, StepRecord

if TYPE_CHECKING:
    from vtkernels.train.trainer import Trainer

log = logging.getLogger("vtkernels")


class JsonLines(Observer):
    """Writes log.jsonl into the run's folder: objects of kind start, step, epoch, save and end, each with the number of the update.

    A run that goes on takes the lines back that lie beyond where it goes on from, so that the file tells of one run without gaps.
    """

    def __init__(self, folder: Path | str):
        self.path = Path(folder) / "log.jsonl"
        self._file, self._trainer = None, None

    def on_start(self, trainer: "Trainer") -> None:
        self._trainer = trainer
        update = trainer.progress.update
        kept = [line for line in read_log(self.path) if line["step"] <= update and line["kind"] != "end"] if update else []
        # the run may have ended after a checkpoint and before the line of its epoch
        told = {line["epoch"] for line in kept if line["kind"] == "epoch"}
        kept += [_line("epoch", **asdict(epoch)) for epoch in trainer.history.epochs if epoch.epoch not in told]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(_text(line) for line in kept))
            partial.replace(self.path)
            self._file = self.path.open("a")
        except OSError as error:
            self._give_up(error)
        self._write("start", step=update, time=time.time())

    def on_step(self, record: StepRecord) -> None:
        self._write("step", **asdict(record))

    def on_epoch(self, record: EpochRecord) -> None:
        self._write("epoch", **asdict(record))

    def on_save(self, path: Path) -> None:
        self._write("save", step=self._trainer.progress.update if self._trainer else 0, path=str(path))

    def on_end(self, trainer: "Trainer", history: History) -> None:
        self._write("end", step=trainer.progress.update, stopped=history.stopped, best=history.best.epoch if history.best else None, time=time.time())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, kind: str, **values: Any) -> None:
        if self._file is None:
            return
        try:
            self._file.write(_text(_line(kind, **values)))
            # whoever follows the file sees the line at once
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Training is worth more than its log."""
        log.warning("%s cannot be written (%s); training goes on without it", self.path, error)
        with contextlib.suppress(OSError):
            self.close()
        self._file = None


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a log.jsonl, or of the one in a run's folder. A line that was cut off is left out; no file has no lines."""
    path = Path(path)
    path = path / "log.jsonl" if path.is_dir() else path
    if not path.exists():
        return []
    lines = []
    with path.open(errors="replace") as file:
        for text in file:
            with contextlib.suppress(json.JSONDecodeError):
                line = json.loads(text)
                if isinstance(line, dict) and {"kind", "step"} <= line.keys():
                    lines.append(line)
    return lines


def _line(kind: str, **values: Any) -> dict[str, Any]:
    return {"kind": kind, **values}


def _text(line: dict[str, Any]) -> str:
    return json.dumps(_plain(line), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
