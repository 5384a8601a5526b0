"""What is minimised: a loss of the classes, and what wraps around it. Each choice is a class of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from vtkernels.recipes._errors import check_between, refuse

if TYPE_CHECKING:
    from torch import Tensor

    from vtkernels.data.datasets import Statistics
    from vtkernels.models import Model
    from vtkernels.train import Task as TrainTask


class Given(NamedTuple):
    """What a task is built for."""

    model: "Model"
    num_classes: int
    # whether targets come as probabilities, smoothed already
    mixed: bool
    # of each image in a batch
    views: int
    # by which the images are normalised; None where there are no images
    statistics: "Statistics | None" = None


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Of the classes.

    Attributes:
        smoothing: probability that is spread over all classes; where batches are mixed it is part of the mixed targets.
    """

    smoothing: float = 0.0

    def build(self, given: Given) -> Callable[["Tensor", "Tensor"], "Tensor"]:
        from torch import nn

        if given.views > 1:
            refuse("augment.policy.views", "be 1 with this loss", given.views, "choose --task.loss consistency, or --augment.policy.views 1")
        return nn.CrossEntropyLoss(label_smoothing=0.0 if given.mixed else self.smoothing)


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Cross-entropy of the clean view, plus the Jensen-Shannon divergence of all views.

    Attributes:
        weight: of the divergence.
        smoothing: probability that is spread over all classes.
    """

    weight: float = 12.0
    smoothing: float = 0.0

    def build(self, given: Given) -> Callable[["Tensor", "Tensor"], "Tensor"]:
        from vtkernels.losses import AugMixLoss

        if given.views < 2:
            refuse("augment.policy.views", "be at least 2 with this loss", given.views, "choose --task.loss crossentropy, or --augment.policy augmix")
        return AugMixLoss(given.views, self.weight, 0.0 if given.mixed else self.smoothing)


@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy:
    """Of each class by itself, yes or no.

    Attributes:
        smoothing: probability that is spread over all classes; where batches are mixed it is part of the mixed targets.
        threshold: targets above it count as yes, so that both classes of a mixed image do; none takes targets as they are.
        sum_classes: sum over the classes rather than their mean.
    """

    smoothing: float = 0.0
    threshold: float | None = 0.0
    sum_classes: bool = False

    def build(self, given: Given) -> Callable[["Tensor", "Tensor"], "Tensor"]:
        from vtkernels.losses import BinaryCrossEntropy as Criterion

        if given.views > 1:
            refuse("augment.policy.views", "be 1 with this loss", given.views, "choose --task.loss consistency, or --augment.policy.views 1")
        if self.threshold is not None and self.smoothing / given.num_classes > self.threshold:
            hint = "smoothed targets are all above 0; try --task.loss.smoothing 0, or --task.loss.threshold none"
            refuse("task.loss.threshold", "be above the smoothed targets of the other classes", self.threshold, hint)
        return Criterion(smoothing=self.smoothing, target_threshold=self.threshold, sum_classes=self.sum_classes)


Loss = CrossEntropy | Consistency | BinaryCrossEntropy


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Images into classes.

    Attributes:
        loss: of logits and targets.
        eval_mode: train with the model as in evaluation: nothing is dropped, and statistics stay as they are.
    """

    loss: Loss = CrossEntropy()
    eval_mode: bool = False

    @property
    def smoothing(self) -> float:
        return self.loss.smoothing

    def check(self) -> None:
        check_between("task.loss.smoothing", self.smoothing, 0, 1)

    def build(self, given: Given) -> "TrainTask":
        from vtkernels.train import ClassificationTask

        return ClassificationTask(given.model, self.loss.build(given), eval_mode=self.eval_mode)

    def tiny(self, share: float) -> Self:
        return self


@dataclass(frozen=True, kw_only=True)
class Drloc:
    """Another task, plus dense relative localisation of the model's last map.

    Attributes:
        inner: the task itself.
        weight: of the auxiliary loss after its warm-up; 0.5 for Swin, 0.1 for the others.
        warmup: epochs of the weight's rise from 0.
        span: epochs at whose end the weight is 0 again.
        pairs: of positions in each image.
        mode: "l1" regression, "ce" classes, "cbr" cycle-back regression.
        target: distances, "abs" or "signed".
        reference: "released" counts distances in positions, as the code that made the published figures; "paper" in shares of the map.
    """

    inner: "Task" = Classification()
    weight: float = 0.5
    warmup: float = 20
    span: float = 300
    pairs: int = 64
    mode: Literal["l1", "ce", "cbr"] = "l1"
    target: Literal["abs", "signed"] = "abs"
    reference: Literal["released", "paper"] = "released"

    @property
    def smoothing(self) -> float:
        return self.inner.smoothing

    def check(self) -> None:
        self.inner.check()
        check_between("task.weight", self.weight, 0)
        check_between("task.pairs", self.pairs, 1)
        if not 0 <= self.warmup < self.span:
            refuse("task.warmup", f"be at least 0 and less than task.span ({self.span:g})", self.warmup)

    def weight_at(self, epoch: float) -> float:
        from vtkernels.losses import drloc_weight

        return drloc_weight(epoch, self.weight, warmup_epochs=self.warmup, total_epochs=self.span)

    def build(self, given: Given) -> "TrainTask":
        from vtkernels.losses import DrlocLoss
        from vtkernels.train import DrlocTask

        loss = DrlocLoss(
            given.model.head_width,
            self.weight,
            warmup_epochs=self.warmup,
            total_epochs=self.span,
            num_pairs=self.pairs,
            mode=self.mode,
            target=self.target,
            reference=self.reference,
            layout="bchw",
        )
        return DrlocTask(self.inner.build(given), loss)

    def tiny(self, share: float) -> Self:
        return replace(self, inner=self.inner.tiny(share), warmup=self.warmup * share, span=self.span * share)


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Another task, on images that were moved within a small ball so that its loss rises: PGD training.

    Attributes:
        inner: the task itself.
        epsilon: radius of the ball, of pixels in 0..1: 8/255 for CIFAR, 4/255 for ImageNet.
        step: of the ascent.
        steps: how many.
        norm: "linf" or "l2", of each image.
        random_start: begin anywhere in the ball.
        eval_mode: whether the attack sees the model as in evaluation; otherwise as in training.
    """

    inner: "Task" = Classification()
    epsilon: float = 8 / 255
    step: float = 2 / 255
    steps: int = 7
    norm: Literal["linf", "l2"] = "linf"
    random_start: bool = True
    eval_mode: bool = False

    @property
    def smoothing(self) -> float:
        return self.inner.smoothing

    def check(self) -> None:
        self.inner.check()
        check_between("task.epsilon", self.epsilon, 0)
        check_between("task.step", self.step, 0, open_below=True)
        check_between("task.steps", self.steps, 0)

    def build(self, given: Given) -> "TrainTask":
        from vtkernels.train import AdversarialTask

        if given.views > 1:
            refuse("augment.policy.views", "be 1 for an attack", given.views, "try --augment.policy.views 1")
        attack = {"step": self.step, "steps": self.steps, "norm": self.norm, "random_start": self.random_start}
        return AdversarialTask(self.inner.build(given), self.epsilon, given.statistics, eval_mode=self.eval_mode, **attack)

    def tiny(self, share: float) -> Self:
        return replace(self, inner=self.inner.tiny(share))


Task = Classification | Drloc | Adversarial
