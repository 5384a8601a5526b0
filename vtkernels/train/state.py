"""Everything a run needs to go on as if it had never stopped, in plain values and tensors."""

import logging
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from vtkernels._core import check
from vtkernels.train import distributed
from vtkernels.train.random_state import random_state, seed_all, set_random_state
from vtkernels.version import __version__

if TYPE_CHECKING:
    from vtkernels.train.trainer import Trainer

log = logging.getLogger("vtkernels")

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
        "accumulate": trainer.settings.accumulate,
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
    own = _own_part(trainer, state)
    # first: what does not fit is told before anything is changed
    trainer.train_loader.load_state_dict(own["loader"])
    trainer.loader_state = trainer.train_loader.state_dict()
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
    trainer.progress.images = own["images"]
    trainer.loss_sum.fill_(own["loss_sum"])
    # last: loading may draw random numbers
    if own["random"] is not None:
        set_random_state(own["random"])
    else:
        seed_all(trainer.settings.seed + trainer.rank + trainer.world * trainer.progress.update)


def _own_part(trainer: "Trainer", state: dict[str, Any]) -> dict[str, Any]:
    """What this process goes on from. Of another number of processes, as much as can be divided among these."""
    processes, images = state["processes"], state["progress"]["images"]
    if len(processes) == trainer.world:
        return {**processes[trainer.rank], "images": images}
    # the schedule, and what an epoch is, rest on updates
    then = _update_size(processes[0]["loader"], state.get("accumulate", 1))
    now = _update_size(trainer.train_loader.state_dict(), trainer.settings.accumulate)
    if not then or then != now:
        hint = f"the run had {len(processes)} processes, now {trainer.world}: choose batch_size and accumulate so that the product of all three stays"
        check.fail("Trainer.resume", "the images of an update, of all processes,", f"stay {_told(then)}", _told(now), hint)
    if trainer.is_main:
        log.warning(
            "a run of %d processes goes on with %d: weights, optimizer, schedule and the order of the samples as they were; random numbers (dropout, "
            "mixing) are drawn anew and sums are rounded differently, so that its losses are not those of the whole run to the bit",
            len(processes),
            trainer.world,
        )
    return {
        "loader": processes[0]["loader"],
        "images": images * len(processes) // trainer.world,
        "loss_sum": sum(part["loss_sum"] for part in processes) / trainer.world,
        "random": processes[trainer.rank]["random"] if trainer.rank < len(processes) else None,
    }


def _update_size(loader: dict[str, Any], accumulate: int) -> list[int]:
    """Images that all processes together make an update of, of each set that is read; none if the loader does not tell."""
    if {"batch_size", "world"} <= loader.keys():
        return [loader["batch_size"] * loader["world"] * accumulate]
    return [size for part in loader.values() if isinstance(part, dict) for size in _update_size(part, accumulate)]


def _told(sizes: list[int]) -> str:
    return " and ".join(map(str, sizes)) or "known from the loader's state"
