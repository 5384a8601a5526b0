"""What is minimised: a loss of the classes, and what wraps around it. Each choice is a class of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from vtkernels.recipes._errors import check_between, refuse
from vtkernels.recipes._teacher import Normalized, outline, teacher
from vtkernels.recipes._unlabelled import PseudoLabelled, WeakAndStrong

if TYPE_CHECKING:
    from torch import Tensor

    from vtkernels.data.datasets import Statistics
    from vtkernels.models import Model
    from vtkernels.recipes._data import Data
    from vtkernels.train import Task as TrainTask


class Given(NamedTuple):
    """What a task is built for."""

    model: "Model"
    num_classes: int
    # whether targets come as probabilities, smoothed already
    mixed: bool
    # of each image in a batch
    views: int
    # edge of the images
    size: int = 224
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


class OfImages:
    """What tasks have in common that learn one thing of each image."""

    # whether images are transformed together with masks or boxes
    joint: ClassVar[bool] = False
    TARGETS: ClassVar[str] = "one class"

    def suits(self, target: Any) -> bool:
        """Whether it can be learnt."""
        return not isinstance(target, dict) and np.ndim(target) < 2

    def tiny_data(self, data: "Data") -> "Data":
        """What the task can learn from at the smallest scale: any data here."""
        return data


@dataclass(frozen=True, kw_only=True)
class Classification(OfImages):
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
class Drloc(OfImages):
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

    def tiny_data(self, data: "Data") -> "Data":
        return self.inner.tiny_data(data)


@dataclass(frozen=True, kw_only=True)
class Adversarial(OfImages):
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

    def tiny_data(self, data: "Data") -> "Data":
        return self.inner.tiny_data(data)


@dataclass(frozen=True, kw_only=True)
class Distillation(OfImages):
    """Another task, plus what a teacher says of the same augmented and mixed images.

    Attributes:
        inner: the task itself, which counts 1 - alpha.
        teacher: its weights: a run's folder, a file, hf-hub:owner/name, timm:architecture.tag; or new:MODEL, which knows nothing, to try a recipe.
        teacher_model: its architecture where the weights do not tell: one of `vtkernels list models`, or timm:NAME.
        teacher_normalize: how its images were normalised, where its weights do not tell: as those of the "student", by ImageNet's mean and deviation,
            to -1..1 ("half"), or not at all ("none"). Where that is not the student's way, the teacher's images are normalised anew.
        form: "hard" learns the teacher's class, "soft" its probabilities.
        alpha: weight of the teacher.
        temperature: of both sides' probabilities, of the soft form.
        mean: of the soft form over "samples" as published by Hinton, or over "elements" as in DeiT's code, which is 1 / classes of that.
    """

    inner: "Task" = Classification()
    teacher: str | None = None
    teacher_model: str | None = None
    teacher_normalize: Normalized | None = None
    form: Literal["hard", "soft"] = "hard"
    alpha: float = 0.5
    temperature: float = 1.0
    mean: Literal["samples", "elements"] = "samples"

    @property
    def smoothing(self) -> float:
        return self.inner.smoothing

    def check(self) -> None:
        self.inner.check()
        check_between("task.alpha", self.alpha, 0, 1)
        check_between("task.temperature", self.temperature, 0, open_below=True)

    def build(self, given: Given) -> "TrainTask":
        from vtkernels.train import DistillationTask

        inner = self.inner.build(given)
        if next(given.model.parameters()).is_meta:
            # a plan needs nobody's weights
            known = outline(self.teacher, self.teacher_model, given)
        else:
            known = teacher(self.teacher, self.teacher_model, given, self.teacher_normalize)
        if known is None:
            return inner
        return DistillationTask(inner, known, self.form, alpha=self.alpha, temperature=self.temperature, mean=self.mean)

    def tiny(self, share: float) -> Self:
        return replace(self, inner=self.inner.tiny(share), teacher="new:vit_nano_patch4_32", teacher_model=None, teacher_normalize=None)


@dataclass(frozen=True, kw_only=True)
class NoisyStudent(OfImages):
    """Labels, and a teacher's pseudo-labels of other images; the second count as many times as there are more of them in a batch.

    Attributes:
        smoothing: probability that is spread over all classes, of labels and of hard pseudo-labels.
        temperature: of the teacher's probabilities.
    """

    smoothing: float = 0.1
    temperature: float = 1.0

    POOL: ClassVar[type] = PseudoLabelled

    def check(self) -> None:
        check_between("task.smoothing", self.smoothing, 0, 1)
        check_between("task.temperature", self.temperature, 0, open_below=True)

    def build(self, given: Given) -> "TrainTask":
        from vtkernels.losses import NoisyStudentLoss
        from vtkernels.train import NoisyStudentTask

        return NoisyStudentTask(given.model, NoisyStudentLoss(temperature=self.temperature, smoothing=self.smoothing))

    def tiny(self, share: float) -> Self:
        return self


@dataclass(frozen=True, kw_only=True)
class FixMatch(OfImages):
    """Labels, and the class of weakly augmented images for their strongly augmented views, where the model is sure of it.

    Attributes:
        threshold: probability from which on it is sure.
        weight: of unlabelled images, the paper's lambda_u.
    """

    threshold: float = 0.95
    weight: float = 1.0

    POOL: ClassVar[type] = WeakAndStrong

    @property
    def smoothing(self) -> float:
        return 0.0

    def check(self) -> None:
        check_between("task.threshold", self.threshold, 0, 1)
        check_between("task.weight", self.weight, 0)

    def build(self, given: Given) -> "TrainTask":
        from vtkernels.losses import FixMatchLoss
        from vtkernels.train import FixMatchTask

        return FixMatchTask(given.model, FixMatchLoss(threshold=self.threshold, weight=self.weight))

    def tiny(self, share: float) -> Self:
        return self


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A class for each pixel, from the model's maps.

    Attributes:
        head: "upernet" or "fcn".
        channels: width of the head.
        frozen: the model stays as it is, and the head alone is trained.
        auxiliary: weight of the loss of a second, small head on the last map but one; 0 has none.
    """

    joint: ClassVar[bool] = True
    smoothing: ClassVar[float] = 0.0
    TARGETS: ClassVar[str] = "a map of classes"
    head: Literal["upernet", "fcn"] = "upernet"
    channels: int = 512
    frozen: bool = False
    auxiliary: float = 0.4

    def check(self) -> None:
        check_between("task.channels", self.channels, 1)
        check_between("task.auxiliary", self.auxiliary, 0)

    def suits(self, target: Any) -> bool:
        return not isinstance(target, dict) and np.ndim(target) == 2

    def build(self, given: Given) -> "TrainTask":
        from vtkernels.models import Segmenter
        from vtkernels.train import SegmentationTask

        check_unmixed(given)
        model = Segmenter(given.model, given.num_classes, head=self.head, channels=self.channels, auxiliary=self.auxiliary > 0, frozen=self.frozen)
        return SegmentationTask(model, auxiliary_weight=self.auxiliary)

    def tiny(self, share: float) -> Self:
        return replace(self, channels=32)

    def tiny_data(self, data: "Data") -> "Data":
        return replace(data, name="shapes", options={"task": "segmentation", "objects": 2})


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Objects with their boxes, from the model's maps, in one stage and without anchors.

    Attributes:
        channels: width of the pyramid and the head.
        depth: convolutions before each answer.
        finest: maps with cells of fewer pixels are left out.
        extra: coarser levels beyond those of the model.
        frozen: the model stays as it is, and the head alone is trained.
    """

    joint: ClassVar[bool] = True
    smoothing: ClassVar[float] = 0.0
    TARGETS: ClassVar[str] = "boxes"
    channels: int = 256
    depth: int = 4
    finest: int = 8
    extra: int = 2
    frozen: bool = False

    def check(self) -> None:
        check_between("task.channels", self.channels, 1)
        check_between("task.depth", self.depth, 0)
        check_between("task.finest", self.finest, 1)
        check_between("task.extra", self.extra, 0)

    def suits(self, target: Any) -> bool:
        return isinstance(target, dict) and "boxes" in target

    def build(self, given: Given) -> "TrainTask":
        from vtkernels.models import Detector
        from vtkernels.train import DetectionTask

        check_unmixed(given)
        options = {"channels": self.channels, "depth": self.depth, "finest": self.finest, "extra": self.extra}
        return DetectionTask(Detector(given.model, given.num_classes, frozen=self.frozen, **options))

    def tiny(self, share: float) -> Self:
        return replace(self, channels=32, depth=1, finest=4, extra=1)

    def tiny_data(self, data: "Data") -> "Data":
        return replace(data, name="shapes", options={"task": "detection", "objects": 2})


def check_unmixed(given: Given) -> None:
    if given.mixed:
        refuse("mix", "be none where pixels or boxes are learnt", "mixed classes", "try --mix none")


Task = Classification | Drloc | Adversarial | Distillation | NoisyStudent | FixMatch | Segmentation | Detection


def holder_of(field: str, task: Any) -> Any:
    """The task, or one that it wraps, that has such a field; None if there is none."""
    while task is not None and not hasattr(task, field):
        task = getattr(task, "inner", None)
    return task


def pool_of(task: Any) -> type | None:
    """The kind of unlabelled images that a task, or the one it wraps, learns from."""
    return getattr(holder_of("POOL", task), "POOL", None)
