"""EfficientNet's compound scaling: how a larger network best divides its cost among depth, width and resolution.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vtkernels._core.check import fail
from vtkernels.analysis._progress import progress


class Coefficients(NamedTuple):
    """Factors of depth, width and resolution when the cost is multiplied by the budget."""

    alpha: float
    beta: float
    gamma: float

    @property
    def cost(self) -> float:
        """By how much the multiplications grow: in proportion to depth, and to the squares of width and resolution."""
        return self.alpha * self.beta**2 * self.gamma**2

    def scaled(self, phi: float) -> "Coefficients":
        """Factors for a cost of cost ** phi."""
        return Coefficients(self.alpha**phi, self.beta**phi, self.gamma**phi)


@dataclass
class Grid:
    """The coefficients that were evaluated, in order, and their scores."""

    budget: float
    tolerance: float
    coefficients: list[Coefficients] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    complete: bool = False

    @property
    def best(self) -> tuple[Coefficients, float]:
        if not self.scores:
            fail("scaling_grid", "grid", "hold at least one evaluation", "none", "the search was interrupted before its first one")
        index = max(range(len(self.scores)), key=lambda one: self.scores[one])
        return self.coefficients[index], self.scores[index]


def candidates(budget: float = 2.0, tolerance: float = 0.1, step: float = 0.05, largest: float | None = None) -> list[Coefficients]:
    """All coefficients of a grid from 1 on whose cost is within a share `tolerance` of the budget.

    Args:
        budget: by how much the multiplications may grow.
        tolerance: how far from it, as a share of it.
        step: of the grid.
        largest: of its values; default the budget, which depth alone would take.
    """
    if not budget >= 1:
        fail("scaling_grid", "budget", "be at least 1", budget, "2 doubles the multiplications")
    if not step > 0 or not tolerance >= 0:
        fail("scaling_grid", "step and tolerance", "be positive", (step, tolerance))
    count = math.floor(((largest or budget) - 1) / step + 1e-9) + 1
    values = [round(1 + step * index, 10) for index in range(count)]
    found = [Coefficients(*one) for one in itertools.product(values, repeat=3)]
    found = [one for one in found if abs(one.cost - budget) <= tolerance * budget + 1e-12]
    if not found:
        fail("scaling_grid", "step", "be fine enough for coefficients of the budget", step, "or raise the tolerance")
    return found


def scaling_grid(
    evaluate: Callable[[Coefficients], float], among: Iterable[Coefficients], *, budget: float = 2.0, tolerance: float = 0.1, limit: int | None = None
) -> Grid:
    """Evaluate coefficients, each of which must keep to the budget.

    Args:
        evaluate: a score, the higher the better.
        among: coefficients, such as `candidates(budget, tolerance)`.
        limit: at most so many of them, spread evenly over the list.
    """
    chosen = list(among)
    if limit is not None and limit < len(chosen):
        if limit < 1:
            fail("scaling_grid", "limit", "be at least 1", limit)
        chosen = [chosen[index] for index in np.linspace(0, len(chosen) - 1, limit).round().astype(int)]
    outside = [one for one in chosen if abs(one.cost - budget) > tolerance * budget + 1e-12]
    if outside:
        fail("scaling_grid", "coefficients", f"cost {budget} within {tolerance:.0%}", f"{outside[0]}, which cost {outside[0].cost:.3f}")
    grid = Grid(budget, tolerance)
    with progress("scaling", len(chosen)) as steps:
        for one in chosen:
            score = float(evaluate(one))
            grid.coefficients.append(one)
            grid.scores.append(score if score == score else float("-inf"))
            steps.advance(f"best {grid.best[1]:.4g}")
    grid.complete = not steps.interrupted
    return grid


__all__ = ["Coefficients", "Grid", "candidates", "scaling_grid"]
