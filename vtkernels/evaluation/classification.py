"""Top-k accuracy, the confusion matrix, and precision, recall and F1 drawn from it, in float64.

A sample whose logits prefer no class, because they hold NaN or are all equal, has no answer: its prediction is -1, and it is wrong.
Ties otherwise go to the lower class.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.check import fail
from vtkernels.evaluation._inputs import given_classes, given_logits

AVERAGES = ("macro", "micro", "weighted")


def answered(logits: Any) -> Tensor:
    """bool [N]: the logits are numbers and differ."""
    logits = given_logits("answered", logits)
    # the comparison with NaN is false
    return logits.amax(dim=1) > logits.amin(dim=1)


def predicted_classes(logits: Any) -> Tensor:
    """int64 [N]: the class of the highest logit, -1 where there is no answer."""
    logits = given_logits("predicted_classes", logits)
    return torch.where(answered(logits), logits.argmax(dim=1), -1)


def target_ranks(logits: Any, targets: Any) -> Tensor:
    """int64 [N]: how many classes come before the target's; all of them, K, where there is no answer.

    Targets are classes [N], or bool [N, K], where any marked class will do.
    """
    logits = given_logits("target_ranks", logits)
    targets = torch.as_tensor(targets, device=logits.device)
    if targets.dim() == 2:
        targets = _first_marked(logits, targets)
    targets = given_classes("target_ranks", "targets", targets, len(logits), logits.shape[1]).to(logits.device)
    own = logits.gather(1, targets[:, None])
    higher = (logits > own).sum(dim=1)
    equal = logits == own
    if equal.sum() > len(logits):
        # ties go to the lower class
        higher += (equal & (torch.arange(logits.shape[1], device=logits.device) < targets[:, None])).sum(dim=1)
    return torch.where(answered(logits), higher, logits.shape[1])


def _first_marked(logits: Tensor, targets: Tensor) -> Tensor:
    """Of the marked classes the one with the highest logit."""
    if targets.dtype != torch.bool or targets.shape != logits.shape:
        fail("target_ranks", "targets of several classes", f"be bool {list(logits.shape)}", f"{targets.dtype} {list(targets.shape)}")
    if not targets.any(dim=1).all():
        fail("target_ranks", "targets", "mark a class of each sample", "rows without any", "leave such samples out: they count neither way")
    best = logits.masked_fill(~targets, -torch.inf).argmax(dim=1)
    is_marked = targets.gather(1, best[:, None])[:, 0]
    return torch.where(is_marked, best, targets.to(torch.uint8).argmax(dim=1))


def top_k_correct(logits: Any, targets: Any, k: int = 1) -> Tensor:
    """bool [N]: the target is among the k highest logits; see `target_ranks`. Of k classes or fewer, every answer is."""
    if k < 1:
        fail("top_k_correct", "k", "be at least 1", k)
    ranks = target_ranks(logits, targets)
    return ranks < min(k, torch.as_tensor(logits).shape[1])


def top_k_accuracy(logits: Any, targets: Any, k: int = 1) -> float:
    """Share of the samples whose target is among the k highest logits."""
    return top_k_correct(logits, targets, k).double().mean().item()


def confusion_matrix(predicted: Any, targets: Any, num_classes: int) -> Tensor:
    """int64 [K, K]: samples of class (row) that were taken for class (column).

    Where a prediction or a target is -1 it is [K + 1, K + 1]: the last column counts samples without an answer, the last row images of no class.
    """
    if num_classes < 2:
        fail("confusion_matrix", "num_classes", "be at least 2", num_classes)
    targets = given_classes("confusion_matrix", "targets", targets, None, num_classes, none=True)
    predicted = given_classes("confusion_matrix", "predicted", predicted, len(targets), num_classes, none=True)
    size = num_classes + int((targets.min() < 0) or (predicted.min() < 0))
    # -1 becomes the last place
    places = (targets % size) * size + predicted % size
    return torch.bincount(places, minlength=size * size).reshape(size, size)


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of each class [K], float64; 0 / 0 is 0.

    Attributes:
        support: samples of each class.
        predicted: how often each class was the answer.
        hits: how often it was the right one.
    """

    support: Tensor
    predicted: Tensor
    hits: Tensor

    @property
    def precision(self) -> Tensor:
        return _ratio(self.hits, self.predicted)

    @property
    def recall(self) -> Tensor:
        return _ratio(self.hits, self.support)

    @property
    def f1(self) -> Tensor:
        return _ratio(2 * self.hits, self.support + self.predicted)

    @property
    def seen(self) -> Tensor:
        """bool [K]: classes that occur among targets or predictions."""
        return (self.support + self.predicted) > 0

    def averaged(self, average: str, absent: str = "exclude") -> tuple[float, float, float]:
        """(precision, recall, F1) over classes.

        Args:
            average: "macro", the mean over classes (F1 too: not the F1 of mean precision and recall); "weighted", by support; "micro", of all
                samples together, which is the accuracy where every sample has an answer and a class.
            absent: "exclude" leaves a class that is never predicted and never present out of the macro mean; "zero" counts it as 0.
        """
        if average not in AVERAGES:
            fail("averaged", "average", f"be one of {', '.join(AVERAGES)}", repr(average))
        if absent not in ("exclude", "zero"):
            fail("averaged", "absent", "be 'exclude' or 'zero'", repr(absent))
        if average == "micro":
            whole = ClassScores(*(counts.sum(dim=0, keepdim=True) for counts in (self.support, self.predicted, self.hits)))
            return whole.precision.item(), whole.recall.item(), whole.f1.item()
        weights = self.support.double() if average == "weighted" else (self.seen if absent == "exclude" else torch.ones_like(self.seen)).double()
        return tuple(_ratio((values * weights).sum(), weights.sum()).item() for values in (self.precision, self.recall, self.f1))

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that are present."""
        return _ratio((self.recall * (self.support > 0)).sum(), (self.support > 0).sum()).item()


def count_classes(predicted: Any, targets: Any, num_classes: int) -> ClassScores:
    """The same as from the confusion matrix, without its K * K places; -1 as there."""
    if num_classes < 2:
        fail("count_classes", "num_classes", "be at least 2", num_classes)
    targets = given_classes("count_classes", "targets", targets, None, num_classes, none=True)
    predicted = given_classes("count_classes", "predicted", predicted, len(targets), num_classes, none=True)
    # -1 is counted in a place before the first, which is cut off
    counted = (targets, predicted, torch.where(predicted == targets, targets, -1))
    return ClassScores(*(torch.bincount(labels + 1, minlength=num_classes + 1)[1:] for labels in counted))


def class_scores(confusion: Any, num_classes: int | None = None) -> ClassScores:
    """Scores from a confusion matrix; of one with a place for -1, tell `num_classes`, and that place counts as a miss of the row and of no column."""
    confusion = torch.as_tensor(confusion)
    size = confusion.shape[0] if confusion.dim() == 2 else 0
    classes = size if num_classes is None else num_classes
    if confusion.dim() != 2 or confusion.shape[1] != size or classes not in (size, size - 1) or classes < 2:
        fail("class_scores", "confusion", "be [K, K], or [K + 1, K + 1] beside num_classes=K, of at least two classes", list(confusion.shape))
    if confusion.sum() == 0:
        fail("class_scores", "confusion", "hold at least one sample", 0, "is the data set empty?")
    return ClassScores(confusion.sum(dim=1)[:classes], confusion.sum(dim=0)[:classes], confusion.diagonal()[:classes])


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above.double() / below.double().clamp_min(torch.finfo(torch.float64).tiny), 0.0)
