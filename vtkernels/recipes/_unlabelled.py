"""Images without labels beside the labelled ones: which, how many in a batch, and what is done to them. Each use is a class of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from vtkernels.recipes._augment import Augment, Policy, RandAugment
from vtkernels.recipes._data import Data, Scalar
from vtkernels.recipes._errors import check_between, refuse

if TYPE_CHECKING:
    from vtkernels.data.datasets import ImageDataset, Statistics


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Where the images come from.

    Attributes:
        ratio: unlabelled images for each labelled one in a batch.
        name: of a data set, whose labels are not looked at; None takes what data.fraction leaves out.
        path: folder with its files.
        split: None means the one for training.
        options: of the single set.
    """

    ratio: int = 3
    name: str | None = None
    path: Path | None = None
    split: str | None = None
    options: dict[str, Scalar] = field(default_factory=dict)

    VIEWS: ClassVar[int] = 1

    def check(self, augment: Augment) -> None:
        check_between("unlabelled.ratio", self.ratio, 1)
        if augment.views > 1 or augment.normalizes:
            refuse("augment.policy", "make one view of uint8 pixels beside unlabelled images", type(augment.policy).__name__)
        if augment.repeats > 1:
            refuse("augment.repeats", "be 1 beside unlabelled images", augment.repeats)

    def images(self, data: Data) -> "ImageDataset":
        """The pool, in an order that does not change."""
        if self.name is not None:
            other = replace(data, name=self.name, path=self.path, options=self.options, train_split=self.split, fraction=1.0, noise=0.0)
            return other.whole("train")
        pool = data.left_out()
        if not len(pool):
            hint = "make it smaller, or name other images with --unlabelled.name"
            refuse("data.fraction", "leave out images that take part without labels", data.fraction, hint)
        return pool

    def source(self, data: Data) -> dict[str, Scalar | None]:
        """What tells one pool from another of as many images."""
        if self.name is not None:
            return {"name": self.name, "split": self.split}
        return {"name": data.name, "split": data.train_split, "left_out_of": data.fraction, "seed": data.fraction_seed}

    def samples(self, data: Data, classes: tuple[str, ...]) -> "ImageDataset":
        """What the unlabelled part of a batch is drawn from; `classes` are those of the labels."""
        raise NotImplementedError

    def transform(self, augment: Augment, size: int, statistics: "Statistics") -> Callable[..., Any]:
        raise NotImplementedError

    def tiny(self) -> Self:
        return replace(self, name=None, path=None, split=None, options={})


@dataclass(frozen=True, kw_only=True)
class PseudoLabelled(Pool):
    """Images with what a teacher says of them, augmented like the labelled ones.

    Attributes:
        labels: the file, see vtkernels.data.pseudo_labels; `vtkernels noisy-student` writes it.
        form: "soft" learns from the teacher's probabilities, "hard" from its class.
        confidence: the least probability of the teacher's class that is believed.
        per_class: images of each class: the most confident ones, or the same again where there are fewer.
    """

    labels: Path | None = None
    form: Literal["soft", "hard"] = "soft"
    confidence: float = 0.3
    per_class: int = 130_000

    # images of each digit that 10 % of the labels leave over
    TINY_PER_CLASS: ClassVar[int] = 130

    def check(self, augment: Augment) -> None:
        super().check(augment)
        check_between("unlabelled.confidence", self.confidence, 0, 1)
        check_between("unlabelled.per_class", self.per_class, 1)

    def samples(self, data: Data, classes: tuple[str, ...]) -> "ImageDataset":
        from vtkernels.data import PseudoLabelled as Labelled
        from vtkernels.data import PseudoLabels

        if self.labels is None:
            refuse("unlabelled.labels", "be a file of pseudo-labels", None, "`vtkernels noisy-student` trains the teacher and writes it")
        try:
            labels = PseudoLabels.load(self.labels)
        except (ValueError, FileNotFoundError) as error:
            refuse("unlabelled.labels", "be a file of pseudo-labels", str(self.labels), str(error))
        if labels.classes != tuple(classes):
            refuse("unlabelled.labels", f"know the classes {', '.join(classes[:5])}, ...", ", ".join(labels.classes[:5]), "was its teacher of other data?")
        source = labels.about.get("source", self.source(data))
        if source != self.source(data):
            refuse("unlabelled.labels", f"be of the images {self.source(data)}", source, "a teacher of this part of the images has to tell them")
        chosen = labels.confident(self.confidence).balanced(self.per_class)
        if not len(chosen):
            hint = f"the highest is {labels.confidence.max(initial=0):.3g}; `vtkernels noisy-student ... --teacher RUN` tries another one by the same teacher"
            refuse("unlabelled.confidence", "leave some pseudo-labels", self.confidence, hint)
        try:
            return Labelled(self.images(data), chosen, self.form)
        except ValueError as error:
            refuse("unlabelled.labels", "be of these images", str(self.labels), str(error))

    def transform(self, augment: Augment, size: int, statistics: "Statistics") -> Callable[..., Any]:
        return augment.build(size, statistics)

    def tiny(self) -> Self:
        # a teacher of ten epochs is sure of nothing
        return replace(super().tiny(), labels=None, confidence=0.0, per_class=min(self.per_class, self.TINY_PER_CLASS))


@dataclass(frozen=True, kw_only=True)
class WeakAndStrong(Pool):
    """Two views of each image: one augmented like the labelled ones, one by `strong` on top of that.

    Attributes:
        strong: the further augmentation.
    """

    ratio: int = 7
    strong: Policy = RandAugment(spec="rand-m10-n2-p1")

    VIEWS: ClassVar[int] = 2

    def check(self, augment: Augment) -> None:
        super().check(augment)
        if self.strong.views > 1 or self.strong.normalizes:
            refuse("unlabelled.strong", "make one view of uint8 pixels", type(self.strong).__name__, "try --unlabelled.strong randaugment")

    def samples(self, data: Data, classes: tuple[str, ...]) -> "ImageDataset":
        from vtkernels.data.datasets import unlabelled

        return unlabelled(self.images(data))

    def transform(self, augment: Augment, size: int, statistics: "Statistics") -> Callable[..., Any]:
        from vtkernels.recipes._views import WeakAndStrong as Views

        weak = augment.build(size, statistics)
        return Views(weak, replace(augment, policy=self.strong).build(size, statistics))


Unlabelled = PseudoLabelled | WeakAndStrong
