"""Knowing when a run has stopped getting better."""

import math
from typing import Any

from vtkernels._core import check


class EarlyStopping:
    """Stops after `patience` evaluations in a row without an improvement of more than `min_delta`. Ties and NaN are none.

    Args:
        patience: evaluations without improvement after which to stop; None never stops, and still knows the best.
        min_delta: a smaller gain does not count.
        mode: "max" or "min".
    """

    def __init__(self, *, patience: int | None = 10, min_delta: float = 0.0, mode: str = "max"):
        if patience is not None and patience < 1:
            check.fail("EarlyStopping", "patience", "be 1 or more", patience, "None never stops")
        if not min_delta >= 0:
            check.fail("EarlyStopping", "min_delta", "be at least 0", min_delta)
        if mode not in ("max", "min"):
            check.fail("EarlyStopping", "mode", 'be "max" or "min"', repr(mode), "max for an accuracy, min for a loss")
        self.patience, self.min_delta, self.mode = patience, min_delta, mode
        self.best = -math.inf if mode == "max" else math.inf
        self.best_index: int | None = None
        self.stopped_index: int | None = None
        self.evaluations = self.counter = 0

    def update(self, metric: float) -> bool:
        """Take the metric of the next evaluation; whether it is the best so far. `should_stop` tells the rest."""
        index, self.evaluations = self.evaluations, self.evaluations + 1
        gain = metric - self.best if self.mode == "max" else self.best - metric
        better = math.isfinite(metric) and gain > self.min_delta
        if better:
            self.best, self.best_index, self.counter = metric, index, 0
        else:
            self.counter += 1
        if self.stopped_index is None and self.patience is not None and self.counter >= self.patience:
            self.stopped_index = index
        return better

    @property
    def should_stop(self) -> bool:
        return self.stopped_index is not None

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "best_index", "stopped_index", "evaluations", "counter")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        if self.patience is None or self.counter < self.patience:
            # with more patience than it had when it stopped, there is more to come
            self.stopped_index = None
