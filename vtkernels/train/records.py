"""What a run tells of itself, and who is told."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtkernels.train.trainer import Trainer


@dataclass(kw_only=True)
class StepRecord:
    """One update.

    Attributes:
        step: updates so far, this one included.
        epoch: with its fraction, where the update began.
        loss: of this update, the mean over all processes.
        lr: of the first parameter group.
        images_per_second: of all processes, since the last record.
        memory: bytes, the most so far: of the device, on CPUs of the process.
        grad_norm: before clipping.
        logs: what the task logged in this update, on this process.
        seconds: spent since the last record: data, compute.
    """

    step: int
    epoch: float
    loss: float
    lr: float
    images_per_second: float
    memory: int
    grad_norm: float | None = None
    logs: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: how many are over, this one included.
        step: updates so far.
        train: loss, the mean over the epoch's samples.
        valid: the metrics after it; None where it was not evaluated.
        ema: the same of the averaged weights.
        seconds: data, compute, valid, save.
        best: whether this is the best epoch so far.
    """

    epoch: int
    step: int
    train: dict[str, float]
    valid: dict[str, float] | None = None
    ema: dict[str, float] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    best: bool = False


@dataclass
class History:
    """The epochs of a run, and how it ended.

    Attributes:
        stopped: why it ended before its last epoch, or "".
    """

    epochs: list[EpochRecord] = field(default_factory=list)
    stopped: str = ""

    @property
    def best(self) -> EpochRecord | None:
        """The last epoch that was the best so far."""
        return next((record for record in reversed(self.epochs) if record.best), None)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = [EpochRecord(**record) for record in state["epochs"]]
        self.stopped = state["stopped"]


class Observer:
    """Is told what happens; of several processes, on the first only. Whatever it does must not change the run."""

    def on_start(self, trainer: "Trainer") -> None:
        """Training begins, or goes on after `trainer.progress.update` updates: of records beyond these, the run knows nothing any more."""

    def on_step(self, record: StepRecord) -> None: ...

    def on_epoch(self, record: EpochRecord) -> None: ...

    def on_save(self, path: Path) -> None:
        """A checkpoint is complete."""

    def on_end(self, trainer: "Trainer", history: History) -> None:
        """Training is over, and not because it was interrupted."""

    def close(self) -> None:
        """The last call, however training ended."""
