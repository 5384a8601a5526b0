"""All measures of a classifier on a set, as a table, JSON and plots."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels._core.check import fail
from vtkernels.evaluation import calibration, classification, open_set, plots
from vtkernels.evaluation._table import shown, table
from vtkernels.evaluation.imagenet import class_logits
from vtkernels.evaluation.predictions import Predictions, predict
from vtkernels.evaluation.thresholds import ClassThresholds

# a confusion matrix of more classes is left out of JSON, and one of far more (ImageNet-21k: 4 GB) is not made
MOST_WRITTEN, MOST_CONFUSED = 200, 5000


@dataclass(frozen=True)
class Result:
    """Measures of one set.

    Attributes:
        name: of the set.
        metrics: by name, shares as fractions. `top1`, `top5`; `precision`, `recall`, `f1` as macro means, `f1_micro`, `f1_weighted`,
            `balanced_accuracy`; `nll`, `brier`, `ece`, `rms` and `mce` (bins of equal width), `rms_adaptive`, `soft_f1`, `aurra`; where there are
            images of no class, AUROC, AUPR and FPR@95 of each certainty, and with thresholds what they accept.
        classes: names, by index; numbers where none are known.
        confusion: int64 [K, K], or [K + 1, K + 1] beside predictions of -1; None beyond 5000 classes.
        scores: of the single classes.
        reliability: bins of confidence, if any sample has finite logits.
    """

    name: str
    metrics: dict[str, float]
    classes: tuple[str, ...] = ()
    confusion: Tensor | None = None
    scores: classification.ClassScores | None = None
    reliability: calibration.Reliability | None = None

    def table(self, *, per_class: bool = False, plain: bool = False) -> str:
        """The measures, or those of the single classes."""
        if not per_class:
            rows = [(name, shown(name, value)) for name, value in self.metrics.items()]
            return table(self.name, ("measure", "value"), rows, plain=plain)
        if self.scores is None:
            fail("Result.table", "per_class", "be False where images may be of several classes", True)
        rows = [(entry["class"], str(entry["support"]), *(shown(name, entry[name]) for name in ("precision", "recall", "f1"))) for entry in self._per_class()]
        return table(self.name, ("class", "support", "precision", "recall", "f1"), rows, plain=plain)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and texts, as JSON knows them."""
        content: dict[str, Any] = {"name": self.name, "metrics": {name: _plain_number(value) for name, value in self.metrics.items()}}
        if self.scores is not None:
            content["per_class"] = self._per_class()
        if self.confusion is not None and len(self.confusion) <= MOST_WRITTEN:
            content["confusion"] = self.confusion.tolist()
        if self.reliability is not None:
            bins = self.reliability
            content["reliability"] = {name: getattr(bins, name).tolist() for name in ("edges", "counts", "confidence", "accuracy")}
        return content

    def save(self, folder: str | Path) -> list[Path]:
        """Write `result.json` and the plots."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / "result.json"
        written.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")
        return [written, *self.plot(folder)]

    def plot(self, folder: str | Path) -> list[Path]:
        """`confusion.png` and `reliability.png`, as far as there is something to show."""
        folder, paths = Path(folder), []
        if self.confusion is not None:
            names = [*self.classes, "none"][: len(self.confusion)]
            paths.append(plots.confusion_plot(self.confusion, names, folder / "confusion.png", title=self.name))
        if self.reliability is not None:
            paths.append(plots.reliability_plot(self.reliability, folder / "reliability.png", title=self.name))
        return paths

    def _per_class(self) -> list[dict[str, Any]]:
        columns = zip(self.classes, *(getattr(self.scores, name).tolist() for name in ("support", "precision", "recall", "f1")), strict=True)
        return [dict(zip(("class", "support", "precision", "recall", "f1"), row, strict=True)) for row in columns]


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    name: str = "evaluation",
    classes: Sequence[str] | None = None,
    ids: Sequence[int] | None = None,
    thresholds: ClassThresholds | None = None,
    bins: int = 15,
    closed: str = "right",
    **options: Any,
) -> Result:
    """Run a model over a set and measure its answers; `options` are those of `predict`, the rest those of `score`."""
    return score(predict(model, loader, **options), name=name, classes=classes, ids=ids, thresholds=thresholds, bins=bins, closed=closed)


def score(
    predictions: Predictions,
    *,
    name: str = "evaluation",
    classes: Sequence[str] | None = None,
    ids: Sequence[int] | None = None,
    thresholds: ClassThresholds | None = None,
    bins: int = 15,
    closed: str = "right",
) -> Result:
    """All measures of some predictions.

    Samples without an answer (NaN, or all logits equal) are wrong; calibration is measured on the others.

    Args:
        name: what the result is called.
        classes: names, by index.
        ids: compare the logits of these classes of the model only, which the targets count through: ImageNet-R's protocol. The accuracy of all
            logits is then `top1_unmasked`.
        thresholds: from `choose_thresholds`, by the largest probability.
        bins, closed: see `reliability`.
    """
    everything, targets = predictions.logits, predictions.targets
    logits = everything if ids is None else class_logits(everything, ids)
    labels = tuple(map(str, classes if classes is not None else range(logits.shape[1])))
    if len(labels) != logits.shape[1]:
        fail("score", "classes", f"be as many as the logits ({logits.shape[1]})", len(labels), "does the model belong to this set?")
    if targets.dim() == 2:
        return Result(name, {"count": len(targets), **_accuracies(logits, targets)}, labels)
    known = targets >= 0
    if not known.any():
        fail("score", "targets", "hold images of known classes", "only negatives", "add the set's own images to the negatives")
    predicted = classification.predicted_classes(logits)
    metrics: dict[str, float] = {"count": int(known.sum())}
    if not known.all():
        metrics["negatives"] = int((~known).sum())
    metrics |= _accuracies(logits[known], targets[known])
    if ids is not None:
        metrics["top1_unmasked"] = classification.top_k_accuracy(everything[known], torch.as_tensor(ids)[targets[known]])
    confusion = classification.confusion_matrix(predicted[known], targets[known], len(labels)) if len(labels) <= MOST_CONFUSED else None
    scores = classification.count_classes(predicted[known], targets[known], len(labels))
    metrics |= dict(zip(("precision", "recall", "f1"), scores.averaged("macro"), strict=True))
    metrics |= {f"f1_{average}": scores.averaged(average)[2] for average in ("micro", "weighted")}
    metrics["balanced_accuracy"] = scores.balanced_accuracy
    finite = torch.isfinite(logits.amax(dim=1)) & ~torch.isnan(logits).any(dim=1)
    bins_found = None
    if (finite & known).any():
        rows = finite & known
        bins_found, measured = _calibrated(logits[rows], targets[rows], bins, closed)
        metrics |= measured
    if not classification.answered(logits).all():
        metrics["without_answer"] = int((predicted < 0).sum())
    if (finite & known).any() and (finite & ~known).any():
        metrics |= _open_set(logits[finite & known], logits[finite & ~known])
    if thresholds is not None:
        metrics |= _accepted(logits[finite], predicted[finite], targets[finite], thresholds)
    return Result(name, metrics, labels, confusion, scores, bins_found)


def _accuracies(logits: Tensor, targets: Tensor) -> dict[str, float]:
    ranks = classification.target_ranks(logits, targets)
    # of five classes or fewer, every answer is among the first five
    return {f"top{k}": (ranks < k).double().mean().item() for k in (1, 5) if k < logits.shape[1]}


def _calibrated(logits: Tensor, targets: Tensor, bins: int, closed: str) -> tuple[calibration.Reliability, dict[str, float]]:
    correct = classification.predicted_classes(logits) == targets
    confidence, likelihood, brier = calibration.probability_measures(logits, targets)
    found = calibration.reliability(confidence, correct, bins, closed)
    return found, {
        "nll": likelihood,
        "brier": brier,
        "ece": found.error("mean"),
        "rms": found.error("rms"),
        "mce": found.error("max"),
        "rms_adaptive": calibration.adaptive_calibration_error(confidence, correct),
        "soft_f1": calibration.soft_f1(confidence, correct),
        "aurra": calibration.aurra(confidence, correct),
    }


def _open_set(known: Tensor, unknown: Tensor) -> dict[str, float]:
    found = {}
    for kind in open_set.CERTAINTIES:
        measures = open_set.open_set_scores(open_set.certainty(known, kind), open_set.certainty(unknown, kind))
        found |= {f"{measure}_{kind}": value for measure, value in measures.items()}
    return found


def _accepted(logits: Tensor, predicted: Tensor, targets: Tensor, thresholds: ClassThresholds) -> dict[str, float]:
    kept = thresholds.apply(calibration.confidences(logits), predicted)
    scores = classification.count_classes(kept, targets, logits.shape[1])
    precision, recall, f1 = scores.averaged("micro")
    accepted = {"coverage": (kept >= 0).double().mean().item(), "accepted_precision": precision, "accepted_recall": recall, "accepted_f1": f1}
    if (targets < 0).any():
        accepted["negatives_rejected"] = (kept[targets < 0] < 0).double().mean().item()
    return accepted


def _plain_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
