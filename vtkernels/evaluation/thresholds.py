"""When to answer at all: a threshold for each class, and what accuracy costs in coverage.

Images of no class have the target -1, and a rejected prediction is -1, as in `confusion_matrix`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.check import fail
from vtkernels.evaluation._inputs import expected_prefix_sums, given_classes, given_correct, given_scores


@dataclass(frozen=True)
class ClassThresholds:
    """A prediction of class c counts if its score is at least `values[c]`: -inf accepts all, inf none."""

    values: Sequence[float]

    def apply(self, scores: Any, predicted: Any) -> Tensor:
        """The predictions, -1 where they are rejected."""
        predicted = given_classes("ClassThresholds", "predicted", predicted, None, len(self.values), none=True)
        scores = given_scores("ClassThresholds", "scores", scores, len(predicted))
        limits = torch.tensor([*self.values, math.inf], dtype=torch.float64)
        # the last limit is that of -1, which stays rejected
        return torch.where(scores >= limits[predicted], predicted, -1)


def choose_thresholds(
    scores: Any, predicted: Any, targets: Any, num_classes: int, *, precision: float | None = None, without_negatives: bool = False
) -> ClassThresholds:
    """Thresholds from a validation set that holds images of no class, whose target is -1.

    Between two distinct scores a threshold lies in the middle. A class that is never predicted, or whose goal no threshold reaches, is rejected
    always.

    Args:
        scores: confidence of each prediction, such as `confidences(logits)` or `certainty(logits, "energy")`.
        predicted: classes, -1 for no answer.
        precision: the smallest threshold of at least this precision; None takes the one of the highest F1, where samples of the class that are
            rejected or taken for another are misses, and of several the smallest.
        without_negatives: allow a set without images of no class, on which thresholds come out too low for the open world.
    """
    what = "choose_thresholds"
    if num_classes < 2:
        fail(what, "num_classes", "be at least 2", num_classes)
    if precision is not None and not 0 < precision <= 1:
        fail(what, "precision", "be above 0 and at most 1", precision, "try 0.95, or None for the best F1")
    targets = given_classes(what, "targets", targets, None, num_classes, none=True)
    predicted = given_classes(what, "predicted", predicted, len(targets), num_classes, none=True)
    scores = given_scores(what, "scores", scores, len(targets))
    if not without_negatives and not (targets < 0).any():
        fail(what, "targets", "hold negatives (-1, images of no class)", "none", "add some, or pass without_negatives=True and expect less in the open world")
    values = []
    for label in range(num_classes):
        own = predicted == label
        values.append(_threshold(scores[own], targets[own] == label, int((targets == label).sum()), precision))
    return ClassThresholds(tuple(values))


def _threshold(scores: Tensor, right: Tensor, support: int, precision: float | None) -> float:
    if not len(scores):
        return math.inf
    order = torch.argsort(scores, descending=True)
    levels, lengths = torch.unique_consecutive(scores[order], return_counts=True)
    last = torch.cumsum(lengths, 0) - 1
    accepted, hits = last + 1, torch.cumsum(right[order], 0)[last]
    if precision is not None:
        fits = hits.double() / accepted >= precision
    else:
        f1 = 2 * hits.double() / (accepted + support)
        fits = (f1 == f1.max()) & (hits > 0)
    if not fits.any():
        return math.inf
    place = int(torch.nonzero(fits)[-1])
    if place == len(levels) - 1:
        return -math.inf
    middle = ((levels[place] + levels[place + 1]) / 2).item()
    # between neighbouring floats there is no middle
    return middle if middle > levels[place + 1] else levels[place].item()


@dataclass(frozen=True)
class RiskCoverage:
    """Errors among the accepted at each distinct score, from the strictest threshold on.

    Attributes:
        thresholds: distinct scores, falling.
        coverage: accepted share of the samples at each.
        risk: share of errors among the accepted.
        area: mean over k of the risk of the k most confident, equal scores in all orders.
    """

    thresholds: Tensor
    coverage: Tensor
    risk: Tensor
    area: float


def risk_coverage(scores: Any, correct: Any) -> RiskCoverage:
    """How the error falls as less certain answers are withheld."""
    scores = given_scores("risk_coverage", "scores", scores)
    correct = given_correct("risk_coverage", correct, len(scores))
    errors = expected_prefix_sums(scores, ~correct)
    answers = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    levels, lengths = torch.unique_consecutive(scores.sort(descending=True).values, return_counts=True)
    last = torch.cumsum(lengths, 0) - 1
    risks = errors / answers
    return RiskCoverage(levels, answers[last] / len(scores), risks[last], risks.mean().item())
