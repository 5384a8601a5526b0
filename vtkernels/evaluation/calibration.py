"""Whether a classifier is right as often as it is confident."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.check import fail
from vtkernels.evaluation._inputs import expected_prefix_sums, finite_logits, given_classes, given_correct, given_scores, log_probabilities

NORMS = ("mean", "rms", "max")


def confidences(logits: Any, temperature: float = 1.0) -> Tensor:
    """float64 [N]: the highest probability of each sample."""
    logits = finite_logits("confidences", logits)
    _check_temperature("confidences", temperature)
    return torch.cat([rows.amax(dim=1).exp() for _, rows in log_probabilities(logits, temperature)])


@dataclass(frozen=True)
class Reliability:
    """Samples in bins of confidence.

    Attributes:
        edges: [bins + 1], or None where bins hold equally many samples.
        counts: samples in each bin.
        confidence: mean of each bin, 0 where it is empty.
        accuracy: likewise.
    """

    edges: Tensor | None
    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    def error(self, norm: str = "mean") -> float:
        """What accuracy and confidence differ by: "mean" (ECE) and "rms" weighted by the bins' shares of the samples, or "max" (MCE)."""
        if norm not in NORMS:
            fail("calibration error", "norm", f"be one of {', '.join(NORMS)}", repr(norm))
        gaps = (self.accuracy - self.confidence).abs()
        if norm == "max":
            return gaps.max().item()
        shares = self.counts.double() / self.counts.sum()
        return (shares * gaps).sum().item() if norm == "mean" else math.sqrt((shares * gaps**2).sum().item())


def reliability(confidence: Any, correct: Any, bins: int = 15, closed: str = "right") -> Reliability:
    """Bins of equal width.

    Args:
        confidence: [N] in [0, 1].
        correct: whether each prediction is right.
        closed: which edge belongs to a bin: "right" is (low, high], as in Guo et al., with 0 in the first bin; "left" is [low, high), as in
            torchmetrics, with 1 in the last. A confidence of 0.9 lies in the ninth of ten bins of the first kind and in the tenth of the other.
    """
    confidence, correct = _given("reliability", confidence, correct)
    if bins < 1:
        fail("reliability", "bins", "be at least 1", bins, "try 15")
    if closed not in ("right", "left"):
        fail("reliability", "closed", "be 'right' or 'left'", repr(closed))
    # k / bins is the float that a person writes; a sum of steps is not
    edges = torch.arange(bins + 1, dtype=torch.float64) / bins
    places = torch.searchsorted(edges, confidence, right=closed == "left") - 1
    return _binned(places.clamp(0, bins - 1), confidence, correct, bins, edges)


def adaptive_reliability(confidence: Any, correct: Any, bin_size: int = 100, skip_last: bool = False) -> Reliability:
    """Bins of `bin_size` samples in the order of their confidence; the last one takes the remainder too.

    Args:
        skip_last: leaves the most confident bin out, as the code published with outlier exposure does, whose figures are to be matched so only.
            With a single bin nothing is left, and the error is 0.
    """
    confidence, correct = _given("adaptive_reliability", confidence, correct)
    if bin_size < 1:
        fail("adaptive_reliability", "bin_size", "be at least 1", bin_size, "try 100")
    count = len(confidence)
    bins = max(1, count // bin_size)
    places = (torch.arange(count) // bin_size).clamp_max(bins - 1)
    # of samples with equal confidence, right ones first: the order they came in has no say
    order = torch.argsort(correct.to(torch.uint8), descending=True)
    order = order[torch.argsort(confidence[order], stable=True)]
    whole = _binned(places, confidence[order], correct[order], bins, None)
    if not skip_last:
        return whole
    # shares stay those of all samples: what is skipped counts as without error
    accuracy = torch.cat([whole.accuracy[:-1], whole.confidence[-1:]])
    return Reliability(None, whole.counts, whole.confidence, accuracy)


def calibration_error(confidence: Any, correct: Any, norm: str = "mean", bins: int = 15, closed: str = "right") -> float:
    """ECE, or RMS calibration error, or MCE, over bins of equal width; see `reliability`."""
    return reliability(confidence, correct, bins, closed).error(norm)


def adaptive_calibration_error(confidence: Any, correct: Any, norm: str = "rms", bin_size: int = 100, skip_last: bool = False) -> float:
    """The same over bins of equally many samples; see `adaptive_reliability`."""
    return adaptive_reliability(confidence, correct, bin_size, skip_last).error(norm)


def soft_f1(confidence: Any, correct: Any) -> float:
    """F1 of "wrong" as told by 1 - confidence; 0 / 0 is 0."""
    confidence, correct = _given("soft_f1", confidence, correct)
    doubt, wrong = 1 - confidence, (~correct).double()
    total = (doubt + wrong).sum().item()
    return 2 * (doubt * wrong).sum().item() / total if total else 0.0


def aurra(confidence: Any, correct: Any) -> float:
    """Area under the accuracy over the response rate: the mean over k of the accuracy of the k most confident."""
    confidence, correct = _given("aurra", confidence, correct)
    sums = expected_prefix_sums(confidence, correct)
    return (sums / torch.arange(1, len(sums) + 1)).mean().item()


def negative_log_likelihood(logits: Any, targets: Any, temperature: float = 1.0) -> float:
    """Mean of -log p of the target's class."""
    logits, targets = _labelled("negative_log_likelihood", logits, targets)
    _check_temperature("negative_log_likelihood", temperature)
    total = sum(-rows.gather(1, targets[own, None]).sum().item() for own, rows in log_probabilities(logits, temperature))
    return total / len(logits)


def brier_score(logits: Any, targets: Any) -> float:
    """Mean over samples of the squared distance between probabilities and the one-hot target: 0 to 2."""
    return probability_measures(logits, targets)[2]


def probability_measures(logits: Any, targets: Any) -> tuple[Tensor, float, float]:
    """Confidences [N], negative log-likelihood and Brier score, of probabilities that are computed once."""
    logits, targets = _labelled("probability_measures", logits, targets)
    confidence, likelihood, brier = [], 0.0, 0.0
    for own, rows in log_probabilities(logits):
        hit = rows.gather(1, targets[own, None])
        likelihood -= hit.sum().item()
        confidence.append(rows.amax(dim=1).exp())
        probabilities, hit = rows.exp(), hit.exp()
        brier += ((probabilities**2).sum() - (hit**2).sum() + ((1 - hit) ** 2).sum()).item()
    return torch.cat(confidence), likelihood / len(logits), brier / len(logits)


def fit_temperature(logits: Any, targets: Any, low: float = 0.2, high: float = 5.0, tolerance: float = 1e-4) -> float:
    """The T that minimises the likelihood loss of `logits / T`, by bisection of its slope; to be fitted on validation samples."""
    logits, targets = _labelled("fit_temperature", logits, targets)
    if not 0 < low < high < math.inf or not tolerance > 0:
        fail("fit_temperature", "low, high and tolerance", "be positive, low below high", (low, high, tolerance))
    if torch.isinf(logits).any():
        fail("fit_temperature", "logits", "be finite", "masked classes", "leave the masked columns out")
    while high - low > tolerance:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _slope(logits, targets, middle) > 0:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def _slope(logits: Tensor, targets: Tensor, temperature: float) -> float:
    """Of the loss by T, up to a positive factor: what the target's logit lies above the expected one."""
    total = 0.0
    for own, rows in log_probabilities(logits, temperature):
        values = logits[own].double()
        total += (values.gather(1, targets[own, None])[:, 0] - (rows.exp() * values).sum(dim=1)).sum().item()
    return total


def _binned(places: Tensor, confidence: Tensor, correct: Tensor, bins: int, edges: Tensor | None) -> Reliability:
    counts = torch.bincount(places, minlength=bins)
    sums = [torch.zeros(bins, dtype=torch.float64).index_add_(0, places, values.double()) for values in (confidence, correct)]
    return Reliability(edges, counts, *(values / counts.clamp_min(1) for values in sums))


def _given(what: str, confidence: Any, correct: Any) -> tuple[Tensor, Tensor]:
    confidence = given_scores(what, "confidence", confidence)
    if confidence.min() < 0 or confidence.max() > 1:
        got = f"{confidence.min():.4g}..{confidence.max():.4g}"
        fail(what, "confidence", "lie in [0, 1]", got, "try confidences(logits)")
    return confidence, given_correct(what, correct, len(confidence))


def _labelled(what: str, logits: Any, targets: Any) -> tuple[Tensor, Tensor]:
    logits = finite_logits(what, logits)
    return logits, given_classes(what, "targets", targets, *logits.shape).to(logits.device)


def _check_temperature(what: str, temperature: float) -> None:
    if not 0 < temperature < math.inf:
        fail(what, "temperature", "be positive", temperature)
