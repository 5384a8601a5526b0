"""How the learning rate goes over the epochs. Each curve is a class of its own; the rates it begins from are the optimizer's."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from vtkernels.recipes._errors import check_between, refuse

if TYPE_CHECKING:
    from vtkernels.optim.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A linear warm-up, then what a subclass adds.

    Attributes:
        warmup: epochs of the rise.
        warmup_updates: its length in updates, instead of epochs.
        warmup_lr: the rate at the start.
        per: a new rate at each "update", or one for each "epoch".
    """

    warmup: float = 0
    warmup_updates: int | None = None
    warmup_lr: float = 0.0
    per: Literal["update", "epoch"] = "update"

    def warmup_epochs(self, updates_per_epoch: int) -> float:
        return self.warmup if self.warmup_updates is None else self.warmup_updates / updates_per_epoch

    def check(self, epochs: int, updates_per_epoch: int) -> None:
        check_between("schedule.warmup", self.warmup, 0)
        length = self.warmup_epochs(updates_per_epoch)
        if length >= max(epochs, 1):
            field = "schedule.warmup" if self.warmup_updates is None else "schedule.warmup_updates"
            refuse(
                field,
                f"be shorter than the training of {epochs} epochs",
                f"{length:g} epochs",
                f"shorten it, or train longer with --train.epochs {int(length) + 1}",
            )

    def scaled(self, factor: float) -> Self:
        """All rates that the curve has of its own, times `factor`."""
        rates = {name: getattr(self, name) * factor for name in ("warmup_lr", "final_lr") if hasattr(self, name)}
        return replace(self, **rates)

    def build(self, lr: float, epochs: int, updates_per_epoch: int) -> "Schedule":
        """The rate of each update."""
        from vtkernels.optim.schedules import InEpochs

        common = {"lr": lr, "warmup": self.warmup_epochs(updates_per_epoch), "warmup_lr": self.warmup_lr}
        return InEpochs(schedule=self._curve(common, epochs), updates_per_epoch=updates_per_epoch, each_update=self.per == "update")

    def _curve(self, common: dict[str, float], epochs: int) -> "Schedule":
        raise NotImplementedError

    def tiny(self, share: float, lr: float) -> Self:
        """For a training of this share of the epochs, whose rate is `lr`."""
        lowest = {"final_lr": min(self.final_lr, lr / 100)} if hasattr(self, "final_lr") else {}
        return replace(
            self, warmup=self.warmup * share if self.warmup_updates is None else 1, warmup_updates=None, warmup_lr=min(self.warmup_lr, lr / 100), **lowest
        )


@dataclass(frozen=True, kw_only=True)
class Constant(Curve):
    """One rate, after the warm-up."""

    def _curve(self, common: dict[str, float], epochs: int) -> "Schedule":
        from vtkernels.optim import schedules

        return schedules.Constant(**common)


@dataclass(frozen=True, kw_only=True)
class Falling(Curve):
    """From the rate to `final_lr`.

    Attributes:
        final_lr: the rate at the end.
        prefix: the curve begins where the warm-up ends. Otherwise it runs underneath from the first epoch on, and the rate jumps down to it.
        span: epochs of the whole curve, if training stops before its end.
    """

    final_lr: float = 0.0
    prefix: bool = False
    span: float | None = None

    def _lengths(self, common: dict[str, float], epochs: int) -> dict[str, float]:
        whole = self.span or epochs
        return {"length": whole - common["warmup"] if self.prefix else whole, "final_lr": self.final_lr, "warmup_prefix": self.prefix}

    def tiny(self, share: float, lr: float) -> Self:
        return replace(super().tiny(share, lr), span=self.span and self.span * share)


@dataclass(frozen=True, kw_only=True)
class Cosine(Falling):
    """Half a cosine, once or with restarts.

    Attributes:
        cycles: how many; each takes the whole length over `cycles`.
        cycle_decay: each starts at so many times the rate of the one before.
    """

    cycles: int = 1
    cycle_decay: float = 1.0

    def _curve(self, common: dict[str, float], epochs: int) -> "Schedule":
        from vtkernels.optim import schedules

        lengths = self._lengths(common, epochs)
        lengths["length"] /= self.cycles
        return schedules.Cosine(**common, **lengths, cycles=self.cycles, cycle_decay=self.cycle_decay)


@dataclass(frozen=True, kw_only=True)
class Linear(Falling):
    """A straight line."""

    def _curve(self, common: dict[str, float], epochs: int) -> "Schedule":
        from vtkernels.optim import schedules

        return schedules.Linear(**common, **self._lengths(common, epochs))


@dataclass(frozen=True, kw_only=True)
class Steps(Curve):
    """Down at milestones.

    Attributes:
        at: shares of the training at which the rate falls.
        factor: what it falls by, each time.
    """

    at: tuple[float, ...] = (1 / 3, 2 / 3)
    factor: float = 0.1

    def _curve(self, common: dict[str, float], epochs: int) -> "Schedule":
        from vtkernels.optim import schedules

        return schedules.MultiStep(**common, milestones=tuple(share * epochs for share in self.at), factor=self.factor, warmup_prefix=False)


@dataclass(frozen=True, kw_only=True)
class Decay(Curve):
    """Down again and again.

    Attributes:
        every: epochs between two falls.
        factor: what the rate falls by, each time.
    """

    every: float = 2.4
    factor: float = 0.97

    def _curve(self, common: dict[str, float], epochs: int) -> "Schedule":
        from vtkernels.optim import schedules

        return schedules.Step(**common, every=self.every, factor=self.factor, warmup_prefix=False)

    def tiny(self, share: float, lr: float) -> Self:
        return replace(super().tiny(share, lr), every=self.every * share)


@dataclass(frozen=True, kw_only=True)
class Plateau(Curve):
    """Down when the monitored metric has stopped rising.

    Attributes:
        factor: what the rate falls by.
        patience: evaluations without improvement that are borne.
        final_lr: the rate does not fall below.
    """

    factor: float = 0.1
    patience: int = 10
    final_lr: float = 0.0

    def _curve(self, common: dict[str, float], epochs: int) -> "Schedule":
        from vtkernels.optim import schedules

        return schedules.Plateau(**common, factor=self.factor, patience=self.patience, final_lr=self.final_lr)


Schedules = Cosine | Linear | Steps | Decay | Plateau | Constant
