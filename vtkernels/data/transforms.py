"""From a data set's image to what the model takes: crops, flips, colours, normalisation, and the usual orders of them.

A transform is called as `transform(image, seed)`, image a uint8 array [H, W, 3] or [H, W], or a Pillow image, and draws from the seed alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vtkernels._core.check import check_share, fail, pair
from vtkernels.data.augment.augmix import AugMix
from vtkernels.data.augment.auto_augment import AutoAugment
from vtkernels.data.augment.image import IMAGENET_MEAN, IMAGENET_STD, Fill, Step, apply, check_fill, check_statistics, crop, normalize, pad, resize, to_array
from vtkernels.data.augment.policies import POLICIES
from vtkernels.data.augment.rand_augment import RandAugment
from vtkernels.data.augment.random import Stream, sample_seed

Size = int | tuple[int, int]
Transform = Callable[..., Any]
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


class Compose:
    """One transform after the other, each with a seed of its own that follows from the image's."""

    def __init__(self, *transforms: Transform):
        self.transforms = transforms

    def __call__(self, image: Any, seed: int) -> Any:
        for place, transform in enumerate(self.transforms):
            image = transform(image, seed=sample_seed(seed, place))
        return image

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


class RandomResizedCrop:
    """A box of a random share of the image's area and a random ratio of width to height, resized.

    The share is uniform in `scale`, the ratio log-uniform in `ratio`; where ten such boxes do not fit, the largest central one of a ratio within
    bounds. Of several filters one is drawn.
    """

    def __init__(
        self,
        size: Size,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        filter: str | Sequence[str] = "bicubic",
    ):
        self.size = _size("RandomResizedCrop", size)
        self.scale, self.ratio = (_interval("RandomResizedCrop", name, bounds) for name, bounds in (("scale", scale), ("ratio", ratio)))
        self.filters = (filter,) if isinstance(filter, str) else tuple(filter)
        for name in self.filters:
            _check_filter("RandomResizedCrop", name)

    def draw(self, seed: int, height: int, width: int) -> tuple[int, int, int, int, str]:
        """Top, left, height and width of the box, and the filter."""
        stream = Stream(seed)
        filter = self.filters[stream.below(len(self.filters))]
        for _ in range(10):
            area, ratio = height * width * stream.uniform(*self.scale), math.exp(stream.uniform(*map(math.log, self.ratio)))
            columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < columns <= width and 0 < rows <= height:
                return stream.below(height - rows + 1), stream.below(width - columns + 1), rows, columns, filter
        lowest, highest = self.ratio
        rows, columns = min(height, max(1, round(width / lowest))), min(width, max(1, round(height * highest)))
        return (height - rows) // 2, (width - columns) // 2, rows, columns, filter

    def __call__(self, image: Any, seed: int) -> np.ndarray:
        array = to_array("RandomResizedCrop", image)
        *box, filter = self.draw(seed, *array.shape[:2])
        return resize(crop(array, *box), self.size, filter)


class RandomCrop:
    """A box of this size anywhere in the image with a margin, which is filled, or with `mode="reflect"` mirrored."""

    def __init__(self, size: Size, padding: int = 0, fill: Fill = 0, mode: str = "constant"):
        self.size, self.padding, self.fill, self.mode = _size("RandomCrop", size), padding, check_fill("RandomCrop", fill), mode
        if not isinstance(padding, int) or padding < 0:
            fail("RandomCrop", "padding", "be an int from 0", padding, "try 4")
        if mode not in ("constant", "reflect"):
            fail("RandomCrop", "mode", "be constant or reflect", repr(mode))

    def draw(self, seed: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the box in an image of this size, margin included."""
        rows, columns = self.size
        if height < rows or width < columns:
            fail("RandomCrop", "the image and its margin", f"be at least {list(self.size)}", [height, width], "try RandomResizedCrop, or Resize first")
        stream = Stream(seed)
        return stream.below(height - rows + 1), stream.below(width - columns + 1), rows, columns

    def __call__(self, image: Any, seed: int) -> np.ndarray:
        array = to_array("RandomCrop", image)
        if self.padding and self.mode == "reflect":
            array = np.pad(array, [(self.padding, self.padding)] * 2 + [(0, 0)] * (array.ndim - 2), "reflect")
        elif self.padding:
            array = pad(array, self.padding, self.fill)
        return crop(array, *self.draw(seed, *array.shape[:2]))


class RandomFlip:
    """Left to right, with probability `prob`."""

    def __init__(self, prob: float = 0.5):
        self.prob = check_share("RandomFlip", "prob", prob)

    def draw(self, seed: int) -> bool:
        return Stream(seed).uniform() < self.prob

    def __call__(self, image: Any, seed: int) -> np.ndarray:
        array = to_array("RandomFlip", image)
        return apply(array, [("flip",)]) if self.draw(seed) else array


class Resize:
    """To (height, width); of an int, the shorter side is made as long. With `cover`, the smallest of the image's shape that covers the size."""

    def __init__(self, size: Size, filter: str = "bicubic", cover: bool = False):
        self.size, self.filter = _size("Resize", size), filter
        self.cover = cover or isinstance(size, int)
        _check_filter("Resize", filter)

    def target(self, height: int, width: int) -> tuple[int, int]:
        """The size of an image of this size afterwards."""
        rows, columns = self.size
        if not self.cover:
            return self.size
        if rows * width >= columns * height:
            return rows, max(columns, rows * width // height)
        return max(rows, columns * height // width), columns

    def __call__(self, image: Any, seed: int = 0) -> np.ndarray:
        array = to_array("Resize", image)
        return resize(array, self.target(*array.shape[:2]), self.filter)


class CenterCrop:
    """The middle of an image that is as large at least."""

    def __init__(self, size: Size):
        self.size = _size("CenterCrop", size)

    def __call__(self, image: Any, seed: int = 0) -> np.ndarray:
        array = to_array("CenterCrop", image)
        rows, columns = self.size
        if array.shape[0] < rows or array.shape[1] < columns:
            fail("CenterCrop", "the image", f"be at least {list(self.size)}", list(array.shape[:2]), "try Resize first")
        return crop(array, round((array.shape[0] - rows) / 2), round((array.shape[1] - columns) / 2), rows, columns)


class ColorJitter:
    """Brightness, contrast, saturation and hue in random order, as Pillow defines the first three and HSV.

    Factors are uniform within 1 - x and 1 + x, not below 0; the hue moves by up to `hue`, at most half, of the circle, and needs Pillow.
    """

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0):
        self.strengths = {"brightness": brightness, "contrast": contrast, "color": saturation, "hue": hue}
        for name, strength in self.strengths.items():
            most = 0.5 if name == "hue" else math.inf
            if not 0 <= strength <= most or strength == math.inf:
                fail("ColorJitter", "saturation" if name == "color" else name, f"be from 0 to {most}", strength, "try 0.3, and 0.1 for hue")

    def draw(self, seed: int) -> list[Step]:
        """Names and factors in order; the hue's is a share of the circle."""
        return self._steps(Stream(seed))

    def _steps(self, stream) -> list[Step]:
        left = [name for name, strength in self.strengths.items() if strength > 0]
        steps = []
        while left:
            name = left.pop(stream.below(len(left)))
            strength = self.strengths[name]
            bounds = (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
            steps.append((name, stream.uniform(*bounds)))
        return steps

    def __call__(self, image: Any, seed: int) -> np.ndarray:
        return _colored(to_array("ColorJitter", image), self.draw(seed))


class ThreeAugment:
    """DeiT III's: grayscale, solarisation or a Gaussian blur, each as likely, then brightness, contrast and saturation jittered."""

    def __init__(self, jitter: float = 0.3):
        self.jitter = ColorJitter(jitter, jitter, jitter)

    def draw(self, seed: int) -> list[Step]:
        """What a call with this seed applies."""
        stream = Stream(seed)
        first = (("color", 0.0), ("solarize", 128), ("gaussian_blur", stream.uniform(0.1, 2.0)))[stream.below(3)]
        return [first, *self.jitter._steps(stream)]

    def __call__(self, image: Any, seed: int) -> np.ndarray:
        return _colored(to_array("ThreeAugment", image), self.draw(seed))


class Normalize:
    """(v / 255 - mean) / std, float32 [3, H, W]."""

    def __init__(self, mean: float | Sequence[float] = IMAGENET_MEAN, std: float | Sequence[float] = IMAGENET_STD):
        self.mean, self.std = check_statistics("Normalize", mean, std)

    def __call__(self, image: Any, seed: int = 0) -> np.ndarray:
        return normalize(image, self.mean, self.std)


class ToFloat(Normalize):
    """v / 255, float32 [3, H, W]."""

    def __init__(self):
        super().__init__(0.0, 1.0)


class Views:
    """The clean image and mixes of it, [views, 3, H, W], normalised as `augmix` says: batches for the Jensen-Shannon loss."""

    def __init__(self, augmix: AugMix, views: int = 3):
        if views < 1:
            fail("Views", "views", "be at least 1", views, "try 3")
        self.augmix, self.views = augmix, views

    def __call__(self, image: Any, seed: int) -> np.ndarray:
        return self.augmix.views(image, seed, self.views)


def train_transform(
    size: Size,
    *,
    padding: int | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    filter: str | Sequence[str] = "bicubic",
    flip: float = 0.5,
    augment: str | Transform | None = None,
    jitter: float = 0.0,
    views: int = 1,
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
) -> Compose:
    """Crop, flip, augmentation, normalisation: an image to float32 [3, H, W].

    Args:
        padding: if given, crops of unscaled images with so wide a black margin, as for CIFAR; otherwise random resized crops.
        augment: "augmix", "three", timm's strings of RandAugment, a policy of `AutoAugment` by name, or any transform of uint8 images; an `AugMix`
            normalises by its own mean and std.
        jitter: of brightness, contrast and saturation, after `augment`, but before AugMix, which answers with floats.
        views: with AugMix, more than one gives the clean image and `views - 1` mixes, [views, 3, H, W].
    """
    chosen = _augmentation(augment, mean, std) if isinstance(augment, str) else augment
    mixes = isinstance(chosen, AugMix)
    if views != 1 and not mixes:
        fail("train_transform", "views", "be 1 without AugMix", views, "try augment='augmix'")
    steps: list[Transform] = [RandomCrop(size, padding) if padding is not None else RandomResizedCrop(size, scale, ratio, filter)]
    if flip:
        steps.append(RandomFlip(flip))
    colors = [ColorJitter(jitter, jitter, jitter)] if jitter else []
    if mixes:
        return Compose(*steps, *colors, Views(chosen, views) if views != 1 else chosen)
    return Compose(*steps, *([chosen] if chosen is not None else []), *colors, Normalize(mean, std))


def eval_transform(
    size: Size,
    crop_pct: float = 0.875,
    *,
    filter: str = "bicubic",
    squash: bool = False,
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
) -> Compose:
    """The middle `crop_pct` of the image, resized so that it has this size, normalised: float32 [3, H, W]. `squash` gives up its shape."""
    rows, columns = _size("eval_transform", size)
    if not 0 < crop_pct <= 1:
        fail("eval_transform", "crop_pct", "be above 0 and at most 1", crop_pct, "try 0.875")
    around = (int(rows / crop_pct), int(columns / crop_pct))
    return Compose(Resize(around, filter, cover=not squash), CenterCrop((rows, columns)), Normalize(mean, std))


def _augmentation(name: str, mean: float | Sequence[float], std: float | Sequence[float]) -> Transform:
    if name == "augmix":
        return AugMix(mean=mean, std=std)
    if name == "three":
        return ThreeAugment()
    if name in POLICIES:
        return AutoAugment(name)
    if not name.startswith("rand"):
        fail("train_transform", "augment", f"be augmix, three, rand-..., or one of {', '.join(POLICIES)}", repr(name), "try rand-m9-mstd0.5-inc1")
    # RandAugment fills with the data's mean colour
    fill = tuple(min(255, max(0, round(255 * value))) for value in check_statistics("train_transform", mean, std)[0])
    return RandAugment.from_config(name, fill=fill)


def _colored(array: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """Steps of `apply`, and turns of the hue between them."""
    waiting: list[Step] = []
    for step in steps:
        if step[0] != "hue":
            waiting.append(step)
            continue
        array = _turned(apply(array, waiting) if waiting else array, step[1])
        waiting = []
    return apply(array, waiting) if waiting else array


def _turned(array: np.ndarray, turn: float) -> np.ndarray:
    if array.ndim == 2 or array.shape[2] == 1:
        return array
    from PIL import Image

    hue, saturation, value = Image.fromarray(array).convert("HSV").split()
    # eight bits are the whole circle
    turned = (np.asarray(hue) + np.uint8(int(turn * 255) % 256)).astype(np.uint8)
    return np.asarray(Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB"))


def _size(what: str, size: Size) -> tuple[int, int]:
    size = pair(what, "size", size)
    if min(size) < 1:
        fail(what, "size", "be positive", size, "try 224")
    return size


def _interval(what: str, name: str, bounds: tuple[float, float]) -> tuple[float, float]:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
        fail(what, name, "be two positive numbers in order", bounds, "leave it out for the usual one")
    return tuple(bounds)


def _check_filter(what: str, name: str) -> None:
    if name not in FILTERS:
        fail(what, "filter", f"be one of {', '.join(FILTERS)}", repr(name), "try bicubic")
