"""Curves for TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING

from vtkernels.train.records import EpochRecord, Observer, StepRecord

if TYPE_CHECKING:
    from vtkernels.train.trainer import Trainer


class TensorBoard(Observer):
    """Writes event files into tensorboard/ of the run's folder: train/, parts/ (what the task logs), valid/ and ema/, over updates."""

    def __init__(self, folder: Path | str):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard: expected tensorboard to be installed, got no such package; try pip install 'vtkernels[train]'") from error
        self._make = SummaryWriter
        self.folder, self._writer = Path(folder) / "tensorboard", None

    def on_start(self, trainer: "Trainer") -> None:
        # of what was told beyond this update, TensorBoard shows nothing any more
        self._writer = self._make(str(self.folder), purge_step=trainer.progress.update + 1)

    def on_step(self, record: StepRecord) -> None:
        values = {"loss": record.loss, "lr": record.lr, "images_per_second": record.images_per_second, "memory_GB": record.memory / 1e9, "epoch": record.epoch}
        if record.grad_norm is not None:
            values["grad_norm"] = record.grad_norm
        self._add("train", values, record.step)
        self._add("parts", record.logs, record.step)

    def on_epoch(self, record: EpochRecord) -> None:
        self._add("epoch", record.train, record.step)
        self._add("valid", record.valid, record.step)
        self._add("ema", record.ema, record.step)
        self._add("seconds", record.seconds, record.step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, group: str, values: dict[str, float] | None, step: int) -> None:
        for name, value in (values or {}).items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
