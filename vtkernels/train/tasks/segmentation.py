"""Classes of pixels."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.evaluation.segmentation import pixel_confusion, segmentation_scores
from vtkernels.models import Segmenter
from vtkernels.train.task import Outcome, Sums, Task, Totals


class SegmentationTask(Task):
    """A segmenter and the cross-entropy of pixels, the mean over those that count. Targets are maps of classes [B, H, W].

    Evaluated are "miou" over the classes that are there or predicted, "accuracy" of pixels, and "recall", the mean over classes.

    Args:
        model: its auxiliary head, if it has one, is trained along.
        ignore: the label of pixels that do not count.
        auxiliary_weight: of the auxiliary head's loss.
    """

    metrics = ("loss", "miou", "accuracy", "recall")

    def __init__(self, model: Segmenter, *, ignore: int = 255, auxiliary_weight: float = 0.4):
        super().__init__()
        self.model, self.ignore, self.auxiliary_weight = model, ignore, auxiliary_weight
        self._forward_both = model.forward_both

    def forward(self, images: Tensor, targets: Any, epoch: float = 0.0) -> Outcome:
        self._check(images, targets)
        logits, auxiliary = self._forward_both(images)
        loss = self._loss(logits, targets)
        if auxiliary is None:
            return Outcome(loss, logits)
        beside = self._loss(auxiliary, targets)
        return Outcome(loss + self.auxiliary_weight * beside, logits, logs={"auxiliary": beside.detach()})

    def evaluate(self, images: Tensor, targets: Any) -> Sums:
        self._check(images, targets)
        logits = self.model(images)
        pixels = int((targets != self.ignore).sum())
        confusion = pixel_confusion(logits.argmax(dim=1), targets, self.model.num_classes, self.ignore)
        return {"loss": (self._loss(logits, targets) * pixels, pixels), "confusion": (confusion, len(images))}

    def conclude(self, totals: Totals, records: dict[str, list[Any]]) -> dict[str, float]:
        rest = {name: total for name, total in totals.items() if name != "confusion"}
        metrics = super().conclude(rest, records)
        if "confusion" in totals:
            scores = segmentation_scores(totals["confusion"][0])
            metrics |= {"miou": scores.mean_iou(), "accuracy": scores.accuracy, "recall": scores.mean_recall}
        return metrics

    def compile_model(self, **options: Any) -> None:
        super().compile_model(**options)
        self._forward_both = torch.compile(self.model.forward_both, **options)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        total = F.cross_entropy(logits.float(), targets.long(), ignore_index=self.ignore, reduction="sum")
        # where nothing counts, there is nothing to learn
        return total / (targets != self.ignore).sum().clamp(min=1)

    def _check(self, images: Tensor, targets: Any) -> None:
        shape = [len(images), *images.shape[-2:]]
        if not isinstance(targets, Tensor) or list(targets.shape) != shape:
            got = list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
            check.fail("SegmentationTask", "targets", f"be maps of classes {shape}", got, "transform images and masks together, see vtkernels.data.joint")
        if targets.is_floating_point():
            check.fail("SegmentationTask", "targets", "be whole numbers", targets.dtype, "probabilities have no place here", TypeError)
        counted = targets.long()
        # one look, for which the host waits where they are on a GPU
        if ((counted != self.ignore) & ((counted < 0) | (counted >= self.model.num_classes))).any():
            counted = counted[counted != self.ignore]
            hint = f"pixels that do not count are {self.ignore}; does num_classes count the ground?"
            check.fail("SegmentationTask", "targets", f"lie in 0..{self.model.num_classes - 1}", f"{counted.min()}..{counted.max()}", hint)
