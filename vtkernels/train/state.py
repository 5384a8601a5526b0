"""Everything a run needs to go on as if it had never stopped, in plain values and tensors."""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from vtkernels._core import check
from vtkernels.train import distributed
from vtkernels.train.random_state import random_state, set_random_state
from vtkernels.version import __version__

if TYPE_CHECKING:
    from vtkernels.train.trainer import Trainer

FORMAT = 1


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        update: updates made. epoch: epochs over. in_epoch: updates of the epoch under way. images: samples of it.
        all_read: its last batch was an incomplete group: the loader has gone on to the next epoch already.
        lr_factor: what steps back have left of the learning rate. steps_back: how many there were.
    """

    update: int = 0
    epoch: int = 0
    in_epoch: int = 0
    images: int = 0
    all_read: bool = False
    lr_factor: float = 1.0
    steps_back: int = 0


def state_of(trainer: "Trainer") -> dict[str, Any]:
    """Of all processes, on all of them."""
    own = {"random": random_state(), "loader": trainer.loader_state, "loss_sum": float(trainer.loss_sum)}
    state = {
        "format": FORMAT,
        "version": __version__,
        "config": trainer.config,
        "task": trainer.task.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.precision.scaler.state_dict(),
        "progress": asdict(trainer.progress),
        "history": trainer.history.state_dict(),
        "stopping": trainer.stopping.state_dict(),
        "processes": distributed.gathered(own),
    }
    for name in ("schedule", "ema"):
        part = getattr(trainer, name)
        if hasattr(part, "state_dict"):
            state[name] = part.state_dict()
    return state


def restore(trainer: "Trainer", state: dict[str, Any]) -> None:
    if state.get("format") != FORMAT:
        check.fail("Trainer.resume", "the checkpoint", f"have format {FORMAT}", state.get("format"), f"it was written by vtkernels {state.get('version')}")
    processes = state["processes"]
    if len(processes) != trainer.world:
        hint = "start as many, or begin a new run from the weights"
        check.fail("Trainer.resume", "the checkpoint", f"come from {trainer.world} processes", len(processes), hint)
    own = processes[trainer.rank]
    trainer.task.load_state_dict(state["task"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    # empty where the run was not in float16 until now
    if state["scaler"]:
        trainer.precision.scaler.load_state_dict(state["scaler"])
    for field in fields(trainer.progress):
        setattr(trainer.progress, field.name, state["progress"][field.name])
    trainer.history.load_state_dict(state["history"])
    trainer.stopping.load_state_dict(state["stopping"])
    if not trainer.stopping.should_stop:
        trainer.history.stopped = ""
    for name in ("schedule", "ema"):
        part = getattr(trainer, name)
        if hasattr(part, "load_state_dict"):
            if name not in state:
                check.fail("Trainer.resume", "the checkpoint", f"have the state of the {name}", "none", f"was the run begun without it, or set {name} to None")
            part.load_state_dict(state[name])
    trainer.train_loader.load_state_dict(own["loader"])
    trainer.loader_state = own["loader"]
    trainer.loss_sum.fill_(own["loss_sum"])
    # last: loading may draw random numbers
    set_random_state(own["random"])
