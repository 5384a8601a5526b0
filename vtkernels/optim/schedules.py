"""Learning rates over time: callable objects that give the rate at time t.

t counts whatever the caller counts. `InEpochs` lets a schedule whose unit is the epoch be asked at each update. All but `Plateau`
depend on t alone, so that a run resumed anywhere goes on with the same rates.
"""

import bisect
import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch.optim import Optimizer

from vtkernels._core import check


class Schedule:
    """t -> learning rate. `observe` and the state concern those that look at a metric; the others ignore it."""

    @property
    def needs_metric(self) -> bool:
        """Whether the rate never falls unless `observe` is called."""
        return False

    def __call__(self, t: float) -> float:
        raise NotImplementedError

    def observe(self, metric: float, t: float) -> None:
        """Tell the value of the monitored metric after an evaluation at time t."""

    def scaled(self, factor: float) -> "Schedule":
        """The same curve with every rate in it times `factor`: base, start of the warm-up and end (Swin scales all three)."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group `lr`, times the group's own `lr_scale`."""
    for group in optimizer.param_groups:
        value = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            # a compiled step or a CUDA graph holds this very tensor
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def linear_scaled(lr: float, batch_size: int, reference: int = 512) -> float:
    """`lr` of a reference batch, for the batch of one update: over all processes and accumulated micro-batches."""
    if batch_size < 1 or reference < 1:
        check.fail("linear_scaled", "batch_size and reference", "be positive", f"{batch_size} and {reference}")
    return lr * batch_size / reference


@dataclass(frozen=True, kw_only=True)
class WarmedUp(Schedule):
    """A linear rise from `warmup_lr` to `lr` over `warmup`, then the curve of a subclass; by itself, constant.

    Args:
        lr: the base rate.
        warmup: how long the rise takes; 0: none.
        warmup_lr: the rate at t = 0.
        warmup_prefix: the curve starts where the rise ends, and its length is the time after. False: it runs underneath from t = 0 on,
            and the rate jumps down to it at the end of the rise.
        first: added to t: 1 for codes whose counter of updates starts at 1.
    """

    lr: float
    warmup: float = 0
    warmup_lr: float = 0.0
    warmup_prefix: bool = False
    first: float = 0

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("lr", "warmup", "warmup_lr", "first"):
            _at_least_zero(name, field, getattr(self, field))

    def __call__(self, t: float) -> float:
        _at_least_zero(type(self).__name__, "t", t)
        t += self.first
        if t < self.warmup:
            return self.warmup_lr + t * (self.lr - self.warmup_lr) / self.warmup
        return self._curve(t - self.warmup if self.warmup_prefix else t)

    def _curve(self, t: float) -> float:
        raise NotImplementedError

    def scaled(self, factor: float) -> Self:
        rates = {name: getattr(self, name) * factor for name in ("lr", "warmup_lr", "final_lr") if hasattr(self, name)}
        return replace(self, **rates)


@dataclass(frozen=True, kw_only=True)
class Constant(WarmedUp):
    """`lr`, after the warm-up."""

    def _curve(self, t: float) -> float:
        return self.lr


@dataclass(frozen=True, kw_only=True)
class Cosine(WarmedUp):
    """Half a cosine from `lr` to `final_lr`, once or with warm restarts (SGDR), then `final_lr`.

    Args:
        length: of the first cycle; of the whole schedule less the warm-up where that is a prefix.
        final_lr: where each cycle ends.
        cycles: how many there are.
        cycle_mul: each is so many times as long as the one before.
        cycle_decay: each starts at so many times the rate of the one before.
        k: power of the time within a cycle (k-decay); above 1 the rate stays high for longer.
    """

    length: float
    final_lr: float = 0.0
    cycles: int = 1
    cycle_mul: float = 1.0
    cycle_decay: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_curve(self)
        for field in ("cycles", "cycle_mul", "k"):
            _positive("Cosine", field, getattr(self, field))
        _at_least_zero("Cosine", "cycle_decay", self.cycle_decay)

    def _curve(self, t: float) -> float:
        start, length, peak = 0.0, self.length, self.lr
        for _ in range(self.cycles):
            if t < start + length:
                return self.final_lr + 0.5 * (peak - self.final_lr) * (1 + math.cos(math.pi * ((t - start) / length) ** self.k))
            start, length, peak = start + length, length * self.cycle_mul, peak * self.cycle_decay
        return self.final_lr


@dataclass(frozen=True, kw_only=True)
class Linear(WarmedUp):
    """A line from `lr` to `final_lr` over `length`, then `final_lr`; `k` as in `Cosine`."""

    length: float
    final_lr: float = 0.0
    k: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_curve(self)
        _positive("Linear", "k", self.k)

    def _curve(self, t: float) -> float:
        return self.final_lr + (self.lr - self.final_lr) * (1 - min(t / self.length, 1.0) ** self.k)


@dataclass(frozen=True, kw_only=True)
class Step(WarmedUp):
    """Times `factor` after each `every`, in steps, or all the time with `smooth` (an exponential)."""

    every: float
    factor: float = 0.1
    smooth: bool = False
    warmup_prefix: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("Step", "every", self.every)
        _at_least_zero("Step", "factor", self.factor)

    def _curve(self, t: float) -> float:
        # 7.2 / 2.4 must count three steps however the quotient is rounded
        return self.lr * self.factor ** (t / self.every if self.smooth else math.floor(t / self.every + 1e-9))


@dataclass(frozen=True, kw_only=True)
class MultiStep(WarmedUp):
    """Times `factor` from each milestone on, as in torch. `early`: one before each, as timm's scheduler does."""

    milestones: tuple[float, ...]
    factor: float = 0.1
    early: bool = False
    warmup_prefix: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        # a recipe read from JSON brings a list
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if list(self.milestones) != sorted(self.milestones):
            check.fail("MultiStep", "milestones", "grow", self.milestones, f"try {tuple(sorted(self.milestones))}")
        _at_least_zero("MultiStep", "factor", self.factor)

    def _curve(self, t: float) -> float:
        return self.lr * self.factor ** bisect.bisect_right(self.milestones, t + 1 if self.early else t)


def exponential(*, lr: float, every: float = 2.4, factor: float = 0.97, warmup: float = 0) -> Step:
    """EfficientNet's: times 0.97 every 2.4 epochs, in steps that are counted from the start of the warm-up."""
    return Step(lr=lr, every=every, factor=factor, warmup=warmup, warmup_prefix=False)


def thirds(*, lr: float, length: int) -> MultiStep:
    """Three equal parts at lr, lr / 10 and lr / 100; what does not divide by three falls to the last (AugMix on ImageNet)."""
    third = length // 3
    _positive("thirds", "length // 3", third)
    return MultiStep(lr=lr, milestones=(third, 2 * third))


def augmix_cosine(*, lr: float, length: float) -> Cosine:
    """A cosine to 1e-6 over all updates (AugMix on CIFAR)."""
    return Cosine(lr=lr, length=length, final_lr=1e-6)


def vit_cosine(*, lr: float, total: float, warmup: float) -> Cosine:
    """The cosine of google-research/vision_transformer: to 0 at update `total`, after a rise from 0; updates are counted from 1."""
    return Cosine(lr=lr, length=total - warmup, warmup=warmup, warmup_prefix=True, first=1)


def vit_linear(*, lr: float, total: float, warmup: float, final_lr: float = 1e-5) -> Linear:
    """The line of google-research/vision_transformer: to `final_lr` at update `total`, after a rise from 0; counted from 1."""
    return Linear(lr=lr, length=total - warmup, final_lr=final_lr, warmup=warmup, warmup_prefix=True, first=1)


@dataclass(frozen=True, kw_only=True)
class _Around(Schedule):
    """Another schedule, seen differently."""

    schedule: Schedule

    @property
    def needs_metric(self) -> bool:
        return self.schedule.needs_metric

    def observe(self, metric: float, t: float) -> None:
        self.schedule.observe(metric, t)

    def scaled(self, factor: float) -> Self:
        return replace(self, schedule=self.schedule.scaled(factor))

    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state)


@dataclass(frozen=True, kw_only=True)
class InEpochs(_Around):
    """A schedule whose unit is the epoch, asked by the number of the update.

    Args:
        schedule: epochs -> learning rate.
        updates_per_epoch: optimizer steps in an epoch.
        each_update: follow the curve within epochs too; False: one rate for a whole epoch.
        lag: epochs that the rate stays behind: 1 for codes that set it at the end of an epoch from that epoch's number (DeiT).
    """

    updates_per_epoch: int
    each_update: bool = False
    lag: float = 0

    def __post_init__(self) -> None:
        _positive("InEpochs", "updates_per_epoch", self.updates_per_epoch)
        _at_least_zero("InEpochs", "lag", self.lag)

    def __call__(self, t: float) -> float:
        return self.schedule(max(0, self._epoch(t) - self.lag))

    def _epoch(self, t: float) -> float:
        return t / self.updates_per_epoch if self.each_update else t // self.updates_per_epoch

    def observe(self, metric: float, t: float) -> None:
        self.schedule.observe(metric, self._epoch(t))


@dataclass(frozen=True, kw_only=True)
class Noisy(_Around):
    """Another schedule's rate times 1 + n from `start` to before `end`, n normal but below `limit` in size: timm's noise, to the number."""

    start: float = 0
    end: float = math.inf
    limit: float = 0.67
    seed: int = 42

    def __post_init__(self) -> None:
        _positive("Noisy", "limit", self.limit)

    def __call__(self, t: float) -> float:
        lr = self.schedule(t)
        return lr + lr * self._noise(math.floor(t)) if self.start <= t < self.end else lr

    def _noise(self, t: int) -> float:
        generator = torch.Generator().manual_seed(self.seed + t)
        while True:
            noise = torch.randn(1, generator=generator, device="cpu").item()
            if abs(noise) < self.limit:
                return noise


class Plateau(Schedule):
    """Times `factor` when a metric has not become better for more than `patience` evaluations in a row (torch's rule).

    Better is `metric > best * (1 + threshold)`, or with mode "min" `metric < best * (1 - threshold)`; NaN never is.

    Args:
        lr: the rate to start with.
        factor: what it is multiplied by.
        patience: evaluations without improvement that are borne.
        threshold: relative improvement that counts.
        cooldown: evaluations after a reduction that are not counted.
        final_lr: the rate does not go below.
        mode: "max" or "min".
        warmup: linear rise from `warmup_lr`; evaluations up to its end are not counted.
        warmup_lr: the rate at t = 0.
    """

    def __init__(
        self,
        *,
        lr: float,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        cooldown: int = 0,
        final_lr: float = 0.0,
        mode: str = "max",
        warmup: float = 0,
        warmup_lr: float = 0.0,
    ):
        for field, value in {"lr": lr, "patience": patience, "threshold": threshold, "cooldown": cooldown, "final_lr": final_lr}.items():
            _at_least_zero("Plateau", field, value)
        if not 0 < factor < 1:
            check.fail("Plateau", "factor", "be between 0 and 1", factor, "0.1 is usual")
        if mode not in ("max", "min"):
            check.fail("Plateau", "mode", 'be "max" or "min"', repr(mode), "max for an accuracy, min for a loss")
        self.rise = Constant(lr=lr, warmup=warmup, warmup_lr=warmup_lr)
        self.factor, self.patience, self.threshold, self.cooldown = factor, patience, threshold, cooldown
        self.final_lr, self.mode = final_lr, mode
        self.lr = lr
        self.best = -math.inf if mode == "max" else math.inf
        self.bad = self.resting = 0

    @property
    def needs_metric(self) -> bool:
        return True

    def __call__(self, t: float) -> float:
        return self.rise(t) if t < self.rise.warmup else self.lr

    def observe(self, metric: float, t: float) -> None:
        if t <= self.rise.warmup and self.rise.warmup:
            return
        if metric > self.best * (1 + self.threshold) if self.mode == "max" else metric < self.best * (1 - self.threshold):
            self.best, self.bad = metric, 0
        else:
            self.bad += 1
        if self.resting:
            self.resting, self.bad = self.resting - 1, 0
        if self.bad > self.patience:
            self.resting, self.bad = self.cooldown, 0
            lower = max(self.lr * self.factor, self.final_lr)
            # torch leaves smaller changes alone
            if self.lr - lower > 1e-8:
                self.lr = lower

    def scaled(self, factor: float) -> "Plateau":
        scaled = Plateau.__new__(Plateau)
        scaled.__dict__ = {**self.__dict__, "rise": self.rise.scaled(factor), "lr": self.lr * factor, "final_lr": self.final_lr * factor}
        return scaled

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("lr", "best", "bad", "resting")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("lr", "best", "bad", "resting"):
            setattr(self, name, state[name])


def _check_curve(schedule: Cosine | Linear) -> None:
    name = type(schedule).__name__
    _positive(name, "length", schedule.length, "with warmup_prefix it is what the warm-up leaves of the whole")
    _at_least_zero(name, "final_lr", schedule.final_lr)


def _at_least_zero(name: str, field: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        check.fail(name, field, "be at least 0 and finite", value)


def _positive(name: str, field: str, value: float, hint: str = "") -> None:
    if not value > 0:
        check.fail(name, field, "be positive", value, hint)
