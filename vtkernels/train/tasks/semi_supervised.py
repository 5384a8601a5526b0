"""Learning from labelled and unlabelled images in one batch, as `vtkernels.data.TwoStreams` gives them."""

from typing import Any

from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.data.streams import StreamTargets
from vtkernels.losses import FixMatchLoss, NoisyStudentLoss
from vtkernels.losses.fixmatch import confident_classes
from vtkernels.train.task import Outcome, classification_sums
from vtkernels.train.tasks.classification import ClassificationTask


class _TwoStreamTask(ClassificationTask):
    """One forward of all images, whose logits a subclass makes a loss of: batch statistics are those of both streams together."""

    def forward(self, images: Tensor, targets: Any, epoch: float = 0.0) -> Outcome:
        if not isinstance(targets, StreamTargets):
            hint = "train with a loader of vtkernels.data.TwoStreams"
            check.fail(type(self).__name__, "targets", "be StreamTargets", type(targets).__name__, hint, TypeError)
        logits, features = self._forward_model(images)
        logits, distilled = logits if isinstance(logits, tuple) else (logits, None)
        loss, logs = self.loss(*targets.split(logits.float()), targets)
        return Outcome(loss, logits, features, distilled, logs)

    def loss(self, labelled: Tensor, unlabelled: Tensor, targets: StreamTargets) -> tuple[Tensor, dict[str, Tensor]]:
        """And what is worth looking at."""
        raise NotImplementedError


class NoisyStudentTask(_TwoStreamTask):
    """A student of labels and of a teacher's pseudo-labels, which come with the batch; its noise is the loader's and the model's own.

    Args:
        model: images -> logits.
        criterion: (labelled, target, unlabelled, pseudo) -> scalar; None is a `NoisyStudentLoss` as published.
    """

    def __init__(self, model: nn.Module, criterion: NoisyStudentLoss | None = None):
        super().__init__(model, criterion or NoisyStudentLoss())

    def loss(self, labelled: Tensor, unlabelled: Tensor, targets: StreamTargets) -> tuple[Tensor, dict[str, Tensor]]:
        if len(unlabelled) != len(targets.unlabelled):
            hint = "are there several views of each image?"
            check.fail("NoisyStudentTask", "unlabelled images", f"be as many as pseudo-labels ({len(targets.unlabelled)})", len(unlabelled), hint)
        loss = self.criterion(labelled, targets.labelled, unlabelled, targets.unlabelled)
        pseudo = targets.unlabelled
        agreeing = classification_sums(unlabelled.detach(), pseudo)["top1"][0] / max(len(pseudo), 1)
        return loss, {"agreement": agreeing}


class FixMatchTask(_TwoStreamTask):
    """Labels, and consistency of a strongly augmented view with a weakly augmented one of the same image where the model is sure of that.

    Args:
        model: images -> logits.
        criterion: of the logits of labelled images, their targets, and the logits of weak and strong views; None is a `FixMatchLoss` as published.
    """

    def __init__(self, model: nn.Module, criterion: FixMatchLoss | None = None):
        super().__init__(model, criterion or FixMatchLoss())

    def loss(self, labelled: Tensor, unlabelled: Tensor, targets: StreamTargets) -> tuple[Tensor, dict[str, Tensor]]:
        if len(unlabelled) != 2 * len(targets.unlabelled):
            expected = f"be two views of each of the {len(targets.unlabelled)} images"
            check.fail("FixMatchTask", "unlabelled images", expected, len(unlabelled), "the loader's transform answers with [weak, strong]")
        weak, strong = unlabelled.chunk(2)
        loss = self.criterion(labelled, targets.labelled, weak, strong)
        return loss, {"sure": confident_classes(weak, self.criterion.threshold)[0].float().mean()}
