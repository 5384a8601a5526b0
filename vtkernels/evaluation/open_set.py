"""Telling images of unknown classes from those of known ones by how certain the classifier is."""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core.check import fail
from vtkernels.evaluation._inputs import finite_logits, given_scores, log_probabilities

CERTAINTIES = ("max_softmax", "max_logit", "energy", "entropy")


def energy(logits: Any, temperature: float = 1.0) -> Tensor:
    """float64 [N]: -T logsumexp(z / T), low where the classifier knows the image."""
    logits = finite_logits("energy", logits).double()
    if not temperature > 0:
        fail("energy", "temperature", "be positive", temperature)
    return -temperature * torch.logsumexp(logits / temperature, dim=1)


def entropy(logits: Any) -> Tensor:
    """float64 [N]: of the probabilities, in nats, low where the classifier is sure."""
    logits = finite_logits("entropy", logits)
    # 0 log 0 is 0
    return torch.cat([-(rows.exp() * rows.clamp_min(torch.finfo(rows.dtype).min)).sum(dim=1) for _, rows in log_probabilities(logits)])


def certainty(logits: Any, kind: str = "max_softmax", temperature: float = 1.0) -> Tensor:
    """float64 [N], high where the classifier knows the image: the largest probability or logit, or the negative energy or entropy."""
    if kind == "max_softmax":
        logits = finite_logits("certainty", logits)
        return torch.cat([rows.amax(dim=1).exp() for _, rows in log_probabilities(logits, temperature)])
    if kind == "max_logit":
        return finite_logits("certainty", logits).amax(dim=1).double()
    if kind == "energy":
        return -energy(logits, temperature)
    if kind == "entropy":
        return -entropy(logits)
    fail("certainty", "kind", f"be one of {', '.join(CERTAINTIES)}", repr(kind))


def auroc(positive: Any, negative: Any) -> float:
    """The probability that a positive's score is above a negative's, where equal ones count half."""
    positive, negative = _both("auroc", positive, negative)
    ordered = negative.sort().values
    below, up_to = (torch.searchsorted(ordered, positive, right=right) for right in (False, True))
    return (below + up_to).sum().item() / 2 / (len(positive) * len(negative))


def average_precision(positive: Any, negative: Any) -> float:
    """Area under precision over recall as a step function: each rise in recall times the precision there."""
    hits, false_alarms, _ = _sweep(*_both("average_precision", positive, negative))
    precision = hits.double() / (hits + false_alarms)
    return (torch.diff(hits, prepend=hits.new_zeros(1)) * precision).sum().item() / hits[-1].item()


def fpr_at_recall(positive: Any, negative: Any, recall: float = 0.95, rule: str = "closest") -> float:
    """Share of negatives that pass the threshold at which so many positives do.

    Args:
        rule: "closest" takes the threshold whose recall is nearest, as published with outlier exposure: of equally near ones the higher recall, of
            several with one recall the lowest threshold, but the highest that reaches recall 1. "at_least" takes the highest that reaches `recall`.
    """
    positive, negative = _both("fpr_at_recall", positive, negative)
    if not 0 < recall <= 1:
        fail("fpr_at_recall", "recall", "be above 0 and at most 1", recall, "try 0.95")
    if rule not in ("closest", "at_least"):
        fail("fpr_at_recall", "rule", "be 'closest' or 'at_least'", repr(rule))
    hits, false_alarms, _ = _sweep(positive, negative)
    reached = hits.double() / hits[-1]
    if rule == "at_least":
        place = int(torch.nonzero(reached >= recall)[0])
    else:
        # lower thresholds than the first of recall 1 only let more negatives pass
        candidates = reached[: int(torch.nonzero(hits == hits[-1])[0]) + 1]
        place = int(torch.nonzero((candidates - recall).abs() == (candidates - recall).abs().min())[-1])
    return false_alarms[place].item() / len(negative)


def open_set_scores(known: Any, unknown: Any) -> dict[str, float]:
    """AUROC, AUPR and FPR@95 from certainties of images of known and of unknown classes. Unknown is positive, as in the literature."""
    known, unknown = given_scores("open_set_scores", "known", known), given_scores("open_set_scores", "unknown", unknown)
    doubts = -unknown, -known
    return {"auroc": auroc(*doubts), "aupr": average_precision(*doubts), "fpr95": fpr_at_recall(*doubts)}


def _both(what: str, positive: Any, negative: Any) -> tuple[Tensor, Tensor]:
    return given_scores(what, "positive", positive), given_scores(what, "negative", negative)


def _sweep(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positives and negatives at or above each distinct score, from the highest on."""
    levels = torch.unique(torch.cat([positive, negative])).flip(0)
    counts = [len(scores) - torch.searchsorted(scores.sort().values, levels) for scores in (positive, negative)]
    return *counts, levels
