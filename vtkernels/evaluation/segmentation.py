"""Intersection over union of classes of pixels, drawn from a confusion matrix, in float64."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.check import fail

ABSENT = ("exclude", "zero")


def pixel_confusion(predicted: Any, targets: Any, num_classes: int, ignore: int | None = 255) -> Tensor:
    """int64 [K, K]: pixels of class (row) that were taken for class (column). Pixels whose target is `ignore` do not count.

    Confusion matrices of parts of a set, added up, are that of the whole.

    Args:
        predicted: classes of any shape.
        targets: classes of the same shape.
    """
    predicted, targets = torch.as_tensor(predicted), torch.as_tensor(targets)
    if predicted.shape != targets.shape:
        fail("pixel_confusion", "predicted", f"have the targets' shape {list(targets.shape)}", list(predicted.shape), "resize the logits to the targets")
    predicted, targets = predicted.reshape(-1).long(), targets.reshape(-1).to(predicted.device).long()
    if ignore is not None:
        counted = targets != ignore
        predicted, targets = predicted[counted], targets[counted]
    for name, classes in (("targets", targets), ("predicted", predicted)):
        if classes.numel() and not 0 <= classes.min() <= classes.max() < num_classes:
            hint = f"pixels that do not count are {ignore}" if ignore is not None else "ignore= tells which pixels do not count"
            fail("pixel_confusion", name, f"lie in 0..{num_classes - 1}", f"{classes.min()}..{classes.max()}", hint)
    return torch.bincount(targets * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class SegmentationScores:
    """What a confusion matrix says.

    Attributes:
        iou: float64 [K], intersection over union of each class; NaN where a class is neither there nor predicted.
        recall: float64 [K], share of each class's pixels that were found; NaN where it is not there.
        accuracy: share of all pixels that are right; NaN of no pixels.
        frequency: float64 [K], share of each class among the pixels.
    """

    iou: Tensor
    recall: Tensor
    accuracy: float
    frequency: Tensor

    def mean_iou(self, absent: str = "exclude") -> float:
        """Over classes. Those neither there nor predicted are left out ("exclude"), or count as 0 ("zero"). NaN of no pixels."""
        if absent not in ABSENT:
            fail("mean_iou", "absent", f"be one of {', '.join(ABSENT)}", repr(absent))
        return (self.iou.nanmean() if absent == "exclude" or self.iou.isnan().all() else self.iou.nan_to_num(0.0).mean()).item()

    @property
    def mean_recall(self) -> float:
        """Over the classes that are there."""
        return self.recall.nanmean().item()

    @property
    def weighted_iou(self) -> float:
        """Over classes by their frequency."""
        return (self.frequency * self.iou.nan_to_num(0.0)).sum().item()


def segmentation_scores(confusion: Any) -> SegmentationScores:
    """Scores from a confusion matrix of `pixel_confusion`."""
    confusion = torch.as_tensor(confusion)
    if confusion.dim() != 2 or confusion.shape[0] != confusion.shape[1]:
        fail("segmentation_scores", "confusion", "be [K, K]", list(confusion.shape), "make it with pixel_confusion")
    confusion = confusion.double()
    hits, there, predicted = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    total = there.sum()
    # 0 / 0 is the NaN that says so
    return SegmentationScores(hits / (there + predicted - hits), hits / there, (hits.sum() / total).item(), there / total)
