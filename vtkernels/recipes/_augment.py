"""What is done to an image before the model sees it: crop, policy, mixing, erasing. Each choice is a class of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vtkernels.recipes._errors import check_between

if TYPE_CHECKING:
    from vtkernels.data.datasets import Statistics

Transform = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class ResizedCrop:
    """A box of a random share and shape of the image, resized.

    Attributes:
        scale: bounds of its share of the area.
        ratio: bounds of its width over its height.
        filter: of Pillow's; "random" draws bilinear or bicubic.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    filter: Literal["bicubic", "bilinear", "random"] = "bicubic"

    def build(self, size: int) -> list[Transform]:
        from vtkernels.data.transforms import RandomResizedCrop

        return [RandomResizedCrop(size, self.scale, self.ratio, ("bilinear", "bicubic") if self.filter == "random" else self.filter)]

    def tiny(self) -> "ResizedCrop":
        # digits fill their image: a crop of a tenth is no digit any more
        return replace(self, scale=(max(self.scale[0], 0.7), self.scale[1]))


@dataclass(frozen=True, kw_only=True)
class PaddedCrop:
    """A box of the image's own size, moved within a margin, as for CIFAR.

    Attributes:
        padding: width of the margin.
        mode: "constant" fills it with black, "reflect" mirrors the image.
        resize: the shorter side is made as long as the crop first, for images of other sizes.
    """

    padding: int = 4
    mode: Literal["constant", "reflect"] = "constant"
    resize: bool = False

    def build(self, size: int) -> list[Transform]:
        from vtkernels.data.transforms import RandomCrop, Resize

        return [*([Resize(size)] if self.resize else []), RandomCrop(size, self.padding, mode=self.mode)]

    def tiny(self) -> "PaddedCrop":
        return self


Crop = ResizedCrop | PaddedCrop


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Random operations of one magnitude.

    Attributes:
        spec: timm's string: m magnitude, n operations, p probability of each, mstd its spread, inc1 stronger with magnitude.
    """

    views: ClassVar[int] = 1
    normalizes: ClassVar[bool] = False
    spec: str = "rand-m9-mstd0.5-inc1"

    def build(self, statistics: "Statistics") -> Transform:
        from vtkernels.data.augment import RandAugment as Policy

        return Policy.from_config(self.spec, fill=_fill(statistics))


@dataclass(frozen=True, kw_only=True)
class AutoAugment:
    """A learned policy.

    Attributes:
        policy: imagenet, imagenet_v0, cifar, cifar_full or svhn.
        exclude_corruptions: leaves out the operations that overlap with ImageNet-C and CIFAR-C.
    """

    views: ClassVar[int] = 1
    normalizes: ClassVar[bool] = False
    policy: Literal["imagenet", "imagenet_v0", "cifar", "cifar_full", "svhn"] = "imagenet"
    exclude_corruptions: bool = False

    def build(self, statistics: "Statistics") -> Transform:
        from vtkernels.data.augment.auto_augment import CORRUPTIONS
        from vtkernels.data.augment.auto_augment import AutoAugment as Policy

        return Policy(self.policy, CORRUPTIONS if self.exclude_corruptions else ())


@dataclass(frozen=True, kw_only=True)
class RandomAutoAugment:
    """AutoAugment without what it learned: operations, probabilities and magnitudes are all drawn.

    Attributes:
        num_ops: operations of an image.
        exclude_corruptions: leaves out the operations that overlap with ImageNet-C and CIFAR-C.
        views: 1, or views of each image for a consistency loss, the first of them clean.
    """

    normalizes: ClassVar[bool] = False
    num_ops: int = 2
    exclude_corruptions: bool = False
    views: int = 1

    def build(self, statistics: "Statistics") -> Transform:
        from vtkernels.data.augment.auto_augment import CORRUPTIONS
        from vtkernels.data.augment.auto_augment import RandomAutoAugment as Policy
        from vtkernels.recipes._views import CleanAndAugmented

        policy = Policy(self.num_ops, CORRUPTIONS if self.exclude_corruptions else ())
        return policy if self.views == 1 else CleanAndAugmented(policy, self.views)


@dataclass(frozen=True, kw_only=True)
class ThreeAugment:
    """DeiT III: grayscale, solarisation or blur, then jittered colours.

    Attributes:
        jitter: of brightness, contrast and saturation.
    """

    views: ClassVar[int] = 1
    normalizes: ClassVar[bool] = False
    jitter: float = 0.3

    def build(self, statistics: "Statistics") -> Transform:
        from vtkernels.data.transforms import ThreeAugment as Policy

        return Policy(self.jitter)


@dataclass(frozen=True, kw_only=True)
class AugMix:
    """Mixed chains of operations.

    Attributes:
        severity: of the operations, to 10; 3 for CIFAR, 1 for ImageNet.
        width: chains. depth: operations in each, -1 draws 1 to 3.
        depth: operations in each chain, -1 draws 1 to 3.
        alpha: of the weights' distributions.
        views: 1, or the clean image and `views - 1` mixes of it, for a consistency loss.
    """

    normalizes: ClassVar[bool] = True
    severity: float = 3.0
    width: int = 3
    depth: int = -1
    alpha: float = 1.0
    views: int = 3

    def build(self, statistics: "Statistics") -> Transform:
        from vtkernels.data.augment import AugMix as Policy
        from vtkernels.data.transforms import Views

        mixes = Policy(width=self.width, depth=self.depth, severity=self.severity, alpha=self.alpha, mean=statistics.mean, std=statistics.std)
        return mixes if self.views == 1 else Views(mixes, self.views)


Policy = RandAugment | AutoAugment | RandomAutoAugment | ThreeAugment | AugMix


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Of single images, in this order: crop, flip, policy, jitter.

    Attributes:
        crop: which part of the image is taken.
        flip: probability of mirroring it.
        policy: changes of colours and shapes.
        jitter: of brightness, contrast and saturation.
        repeats: repeated augmentation: so many copies of each image in a batch, in different processes.
    """

    # images alone
    joint: ClassVar[bool] = False
    crop: Crop = ResizedCrop()
    flip: float = 0.5
    policy: Policy | None = None
    jitter: float = 0.0
    repeats: int = 1

    @property
    def views(self) -> int:
        """Of each image in a batch."""
        return self.policy.views if self.policy else 1

    @property
    def normalizes(self) -> bool:
        """Whether the policy answers with normalised floats; else the batch is normalised where it is trained on."""
        return self.policy is not None and self.policy.normalizes

    def check(self) -> None:
        check_between("augment.flip", self.flip, 0, 1)
        check_between("augment.repeats", self.repeats, 1)
        check_between("augment.jitter", self.jitter, 0)

    def build(self, size: int, statistics: "Statistics") -> Transform:
        from vtkernels.data.transforms import ColorJitter, Compose, RandomFlip

        steps = self.crop.build(size)
        if self.flip:
            steps.append(RandomFlip(self.flip))
        # AugMix answers with floats, so colours come before it
        colors = [ColorJitter(self.jitter, self.jitter, self.jitter)] if self.jitter else []
        policy = [self.policy.build(statistics)] if self.policy else []
        return Compose(*steps, *(colors + policy if self.normalizes else policy + colors))

    def build_valid(self, size: int, statistics: "Statistics", share: float, squash: bool) -> Transform:
        """Of evaluation: the middle, which is this share of each side, of the whole image or of the largest square in it."""
        from vtkernels.data.transforms import CenterCrop, Compose, Resize

        around = int(size / share)
        return Compose(Resize((around, around), cover=not squash), CenterCrop(size))

    def tiny(self) -> "Augment":
        # a mirrored digit is none
        return replace(self, crop=self.crop.tiny(), flip=0.0)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Of images together with their masks or boxes, in this order: size, flip, a box of `data.size`, jitter. What is too small is continued.

    Attributes:
        shortest: bounds of the shorter side in pixels; the shape is kept.
        longest: the longer side has no more; None sets no bound.
        flip: probability of mirroring.
        jitter: of brightness, contrast and saturation.
        valid_shortest: the shorter side in evaluation; None takes the whole image into `data.size`.
        repeats: repeated augmentation: so many copies of each image in a batch, in different processes.
    """

    joint: ClassVar[bool] = True
    views: ClassVar[int] = 1
    normalizes: ClassVar[bool] = False
    shortest: tuple[int, int] = (256, 1024)
    longest: int | None = None
    flip: float = 0.5
    jitter: float = 0.0
    valid_shortest: int | None = None
    repeats: int = 1

    def check(self) -> None:
        check_between("augment.flip", self.flip, 0, 1)
        check_between("augment.repeats", self.repeats, 1)
        check_between("augment.jitter", self.jitter, 0)
        check_between("augment.shortest", self.shortest[0], 1, self.shortest[1])

    def build(self, size: int, statistics: "Statistics") -> Transform:
        from vtkernels.data import joint
        from vtkernels.data.transforms import ColorJitter

        flip = [joint.RandomFlip(self.flip)] if self.flip else []
        colors = [joint.OnImage(ColorJitter(self.jitter, self.jitter, self.jitter))] if self.jitter else []
        crop = joint.RandomCrop(size, fill=_fill(statistics))
        return joint.Compose(joint.ResizeWithin(self.shortest, self.longest), *flip, crop, *colors)

    def build_valid(self, size: int, statistics: "Statistics", share: float, squash: bool) -> Transform:
        """The whole image, continued to a square."""
        from vtkernels.data import joint

        longest = min(self.longest or size, size)
        return joint.Compose(joint.ResizeWithin(self.valid_shortest or size, longest), joint.RandomCrop(size, fill=_fill(statistics)))

    def tiny(self) -> "Scene":
        return replace(self, shortest=(28, 40), longest=None, valid_shortest=None)


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Mixup and CutMix of whole batches. The task's label smoothing goes into the mixed targets.

    Attributes:
        mixup, cutmix: alpha of the Beta distribution of each kind's weight; 0 switches it off.
        prob: of mixing a batch at all.
        switch: probability of CutMix where both are on.
        mode: one draw for the batch, for each pair, or for each elem(ent).
        partner: "flip" pairs the batch with its reverse, "permutation" with a random order.
        off_epoch: from this epoch on nothing is mixed any more; none mixes to the end.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"
    partner: Literal["flip", "permutation"] = "flip"
    off_epoch: int | None = None

    def check(self) -> None:
        check_between("mix.mixup", self.mixup, 0)
        check_between("mix.cutmix", self.cutmix, 0)
        check_between("mix.prob", self.prob, 0, 1)
        check_between("mix.switch", self.switch, 0, 1)
        check_between("mix.mixup + mix.cutmix", self.mixup + self.cutmix, 0, open_below=True)

    def build(self, num_classes: int, smoothing: float, views: int) -> Transform:
        from vtkernels.data.mix import Mixup as Mix

        given = {"prob": self.prob, "switch_prob": self.switch, "mode": self.mode, "partner": self.partner, "views": views, "off_epoch": self.off_epoch}
        return Mix(self.mixup, self.cutmix, label_smoothing=smoothing, num_classes=num_classes, **given)

    def tiny(self, share: float) -> "Mixup":
        return replace(self, off_epoch=self.off_epoch and round(self.off_epoch * share))


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """A rectangle of the image replaced, after normalisation.

    Attributes:
        prob: of erasing an image.
        area: bounds of the rectangle's share of the image.
        aspect: its smallest height over width.
        mode: "const" writes zeros, the mean colour; "rand" one random colour; "pixel" noise.
        count: the largest number of rectangles.
    """

    prob: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: float = 0.3
    mode: Literal["const", "rand", "pixel"] = "pixel"
    count: int = 1

    def build(self, views: int) -> Transform:
        from vtkernels.data.mix import RandomErasing as Erasing

        return Erasing(self.prob, self.area, self.aspect, self.mode, self.count, views)


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """A square of zeros around a uniform centre, after normalisation.

    Attributes:
        length: of its sides: 16 for CIFAR-10, 8 for CIFAR-100, 20 for SVHN.
        prob: of cutting an image.
    """

    length: int = 16
    prob: float = 1.0

    def build(self, views: int) -> Transform:
        from vtkernels.data.mix import Cutout as Cut

        return Cut(self.length, prob=self.prob)


Erase = RandomErasing | Cutout


def _fill(statistics: "Statistics") -> tuple[int, ...]:
    return tuple(min(255, max(0, round(255 * value))) for value in statistics.mean)
