"""Regularised evolution: of a population that ages, a good member has a mutated child, and the oldest member dies.

Real et al., "Regularized Evolution for Image Classifier Architecture Search", 2018.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vtkernels._core.check import fail
from vtkernels.analysis._progress import progress

Candidate = TypeVar("Candidate")


@dataclass
class History(Generic[Candidate]):
    """Every candidate that was evaluated, in order, and its score."""

    candidates: list[Candidate] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    complete: bool = False

    @property
    def best(self) -> tuple[Candidate, float]:
        """The first of those with the highest score."""
        if not self.scores:
            fail("evolve", "history", "hold at least one candidate", "none", "the search was interrupted before its first one")
        index = max(range(len(self.scores)), key=lambda one: self.scores[one])
        return self.candidates[index], self.scores[index]

    def best_so_far(self) -> list[float]:
        found, best = [], float("-inf")
        for score in self.scores:
            best = max(best, score)
            found.append(best)
        return found


def evolve(
    draw: Callable[[random.Random], Candidate],
    mutate: Callable[[Candidate, random.Random], Candidate],
    evaluate: Callable[[Candidate], float],
    *,
    evaluations: int,
    population: int = 20,
    sample: int = 5,
    seed: int = 0,
) -> History[Candidate]:
    """Look for a candidate of high score. The same seed finds the same ones, if `evaluate` is a function of the candidate alone.

    Args:
        draw: gives a random candidate; the first `population` ones are drawn.
        mutate: gives a candidate that differs a little from another.
        evaluate: gives a score, the higher the better. A candidate that comes again keeps its score, and is evaluated once.
        evaluations: candidates in all.
        population: how many live at a time. 1 and more.
        sample: how many of them compete for having a child; as many as the population is greed.
        seed: of all draws.
    """
    for name, value in {"evaluations": evaluations, "population": population, "sample": sample}.items():
        if value < 1:
            fail("evolve", name, "be at least 1", value)
    if sample > population:
        fail("evolve", "sample", f"be at most the population ({population})", sample)
    generator = random.Random(seed)
    history: History[Candidate] = History()
    known: dict[Candidate, float] = {}
    living: deque[tuple[Candidate, float]] = deque(maxlen=population)
    with progress("evolution", evaluations) as steps:
        for number in range(evaluations):
            if number < population:
                candidate = draw(generator)
            else:
                parent = max(generator.sample(list(living), sample), key=lambda member: member[1])[0]
                candidate = mutate(parent, generator)
            if candidate not in known:
                score = float(evaluate(candidate))
                # not a number is worse than any: such a candidate must have no children
                known[candidate] = score if score == score else float("-inf")
            living.append((candidate, known[candidate]))
            history.candidates.append(candidate)
            history.scores.append(known[candidate])
            steps.advance(f"best {history.best[1]:.4g}")
    history.complete = not steps.interrupted
    return history


__all__ = ["History", "evolve"]
