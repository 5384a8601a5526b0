"""Geometry of images together with their boxes and masks, for detection and segmentation.

A joint transform is called as `transform(image, target, seed)` and answers with both; `create_loader` takes it as it takes the others. A target is
a map of labels [H, W], or a dictionary with any of "boxes" [n, 4] as x0 y0 x1 y1, "masks" [n, H, W], and other arrays with one entry per object.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vtkernels._core.check import fail, pair
from vtkernels.data import transforms
from vtkernels.data.augment.image import Fill, apply, check_fill, resize, to_array
from vtkernels.data.augment.random import Stream, sample_seed

Target = np.ndarray | dict[str, np.ndarray]
JointTransform = Callable[..., tuple[Any, Target]]
# of pixels that losses leave out
VOID = 255


class Compose:
    """One joint transform after the other, each with a seed of its own."""

    def __init__(self, *steps: JointTransform):
        self.steps = steps

    def __call__(self, image: Any, target: Target, seed: int) -> tuple[Any, Target]:
        for place, transform in enumerate(self.steps):
            image, target = transform(image, target, seed=sample_seed(seed, place))
        return image, target


class OnImage:
    """A transform of the image alone, such as `ColorJitter` or `Normalize`: pixels must stay where they are."""

    def __init__(self, transform: Callable[..., Any]):
        self.transform = transform

    def __call__(self, image: Any, target: Target, seed: int) -> tuple[Any, Target]:
        return self.transform(image, seed=seed), target


class RandomFlip:
    """Left to right, with probability `prob`."""

    def __init__(self, prob: float = 0.5):
        self.flip = transforms.RandomFlip(prob)

    def __call__(self, image: Any, target: Target, seed: int) -> tuple[np.ndarray, Target]:
        array = _checked("RandomFlip", image, target)
        if not self.flip.draw(seed):
            return array, target
        width = array.shape[1]
        flipped = _mapped(target, lambda boxes: np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1), lambda mask: mask[..., ::-1])
        return apply(array, [("flip",)]), flipped


class Resize:
    """To (height, width); of an int, the shorter side is made as long. Masks take the nearest pixel."""

    def __init__(self, size: transforms.Size, filter: str = "bilinear"):
        self.resize = transforms.Resize(size, filter)

    def __call__(self, image: Any, target: Target, seed: int = 0) -> tuple[np.ndarray, Target]:
        array = _checked("Resize", image, target)
        return _resized(array, target, self.resize.target(*array.shape[:2]), self.resize.filter)


class ResizeWithin:
    """The shorter side to a number of pixels drawn from `shortest`, or less where the longer one would exceed `longest`; the shape is kept."""

    def __init__(self, shortest: int | tuple[int, int], longest: int | None = None, filter: str = "bilinear"):
        self.shortest = (shortest, shortest) if isinstance(shortest, int) else tuple(shortest)
        if len(self.shortest) != 2 or not 0 < self.shortest[0] <= self.shortest[1]:
            fail("ResizeWithin", "shortest", "be a positive number of pixels, or two in order", shortest, "try (480, 800)")
        if longest is not None and longest < 1:
            fail("ResizeWithin", "longest", "be positive, or None", longest, "try 1333")
        self.longest, self.filter = longest, filter

    def __call__(self, image: Any, target: Target, seed: int = 0) -> tuple[np.ndarray, Target]:
        array = _checked("ResizeWithin", image, target)
        sides, (least, most) = array.shape[:2], self.shortest
        factor = min(int(Stream(seed).uniform(least, most + 1)), most) / min(sides)
        if self.longest is not None:
            factor = min(factor, self.longest / max(sides))
        return _resized(array, target, tuple(max(1, round(side * factor)) for side in sides), self.filter)


class RandomScale:
    """Both sides by one factor, log-uniform within `scale`; with a crop behind it, large-scale jitter."""

    def __init__(self, scale: tuple[float, float] = (0.5, 2.0), filter: str = "bilinear"):
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] < math.inf:
            fail("RandomScale", "scale", "be two positive numbers in order", scale, "try (0.5, 2.0)")
        self.scale, self.filter = scale, filter

    def __call__(self, image: Any, target: Target, seed: int) -> tuple[np.ndarray, Target]:
        array = _checked("RandomScale", image, target)
        factor = math.exp(Stream(seed).uniform(*map(math.log, self.scale)))
        return _resized(array, target, tuple(max(1, round(side * factor)) for side in array.shape[:2]), self.filter)


class RandomCrop:
    """A box of this size anywhere in the image; a smaller image is first continued below and to the right.

    Boxes are cut; objects of which less than `least_visible` of the box remains are left out. What is added has the colour `fill`, is in no mask,
    and has the label `void` in a map.
    """

    def __init__(self, size: int | tuple[int, int], fill: Fill = 0, void: int = VOID, least_visible: float = 0.1):
        if not 0 <= least_visible <= 1:
            fail("RandomCrop", "least_visible", "be from 0 to 1", least_visible, "try 0.1")
        self.crop = transforms.RandomCrop(size)
        self.size, self.fill, self.void, self.least_visible = pair("RandomCrop", "size", size), check_fill("RandomCrop", fill), void, least_visible

    def __call__(self, image: Any, target: Target, seed: int) -> tuple[np.ndarray, Target]:
        array = _checked("RandomCrop", image, target)
        height, width = (max(side, least) for side, least in zip(array.shape[:2], self.size, strict=True))
        top, left, rows, columns = self.crop.draw(seed, height, width)

        def cut(values: np.ndarray, continued: Any) -> np.ndarray:
            """Of rows and columns at the end, [..., H, W]."""
            out = np.empty((*values.shape[:-2], rows, columns), values.dtype)
            out[:] = continued
            inside = values[..., top : top + rows, left : left + columns]
            out[..., : inside.shape[-2], : inside.shape[-1]] = inside
            return out

        color = np.array(self.fill)[:, None, None] if array.ndim == 3 else self.fill[0]
        # channels first, as rows and columns are cut at the end
        cropped = np.moveaxis(cut(np.moveaxis(array, 2, 0), color[: array.shape[2]]), 0, 2) if array.ndim == 3 else cut(array, color)
        if not isinstance(target, dict):
            if target.dtype.kind in "iu" and not np.iinfo(target.dtype).min <= self.void <= np.iinfo(target.dtype).max:
                fail("RandomCrop", "void", f"fit the map's {target.dtype}", self.void, "try 255 of uint8")
            return np.ascontiguousarray(cropped), cut(target, self.void)
        kept = _mapped(target, lambda boxes: boxes - np.array([left, top, left, top], boxes.dtype), lambda masks: cut(masks, 0))
        return np.ascontiguousarray(cropped), _visible(kept, rows, columns, self.least_visible)


def _visible(target: dict[str, np.ndarray], height: int, width: int, least: float) -> dict[str, np.ndarray]:
    if "boxes" not in target:
        return target
    boxes = target["boxes"]
    cut = np.stack([boxes[:, 0].clip(0, width), boxes[:, 1].clip(0, height), boxes[:, 2].clip(0, width), boxes[:, 3].clip(0, height)], 1)
    before, after = (np.prod(box[:, 2:] - box[:, :2], axis=1) for box in (boxes, cut))
    keep = (after > 0) & (after >= least * before)
    return {name: values[keep] for name, values in (target | {"boxes": cut}).items()}


def _resized(array: np.ndarray, target: Target, size: tuple[int, int], filter: str) -> tuple[np.ndarray, Target]:
    height, width = array.shape[:2]
    rows, columns = (_nearest(new, old) for new, old in zip(size, (height, width), strict=True))
    factors = np.array([size[1] / width, size[0] / height] * 2)
    scaled = _mapped(target, lambda boxes: (boxes * factors).astype(boxes.dtype), lambda mask: mask[..., rows[:, None], columns])
    return resize(array, size, filter), scaled


def _nearest(new: int, old: int) -> np.ndarray:
    """Where each new pixel comes from; a sum rather than a product, as Pillow's rounding decides between two that are as near."""
    step = old / new
    return np.add.accumulate(np.r_[step * 0.5, np.full(new - 1, step)]).astype(np.int64).clip(max=old - 1)


def _mapped(target: Target, of_boxes: Callable[[np.ndarray], np.ndarray], of_masks: Callable[[np.ndarray], np.ndarray]) -> Target:
    if not isinstance(target, dict):
        return np.ascontiguousarray(of_masks(target))
    changed = {"boxes": of_boxes, "masks": lambda masks: np.ascontiguousarray(of_masks(masks))}
    return {name: changed[name](values) if name in changed else values for name, values in target.items()}


def _checked(what: str, image: Any, target: Target) -> np.ndarray:
    array = to_array(what, image)
    maps = [target.get("masks")] if isinstance(target, dict) else [target]
    for values in maps:
        if values is not None and (not isinstance(values, np.ndarray) or values.ndim < 2 or values.shape[-2:] != array.shape[:2]):
            got = list(values.shape) if isinstance(values, np.ndarray) else type(values).__name__
            fail(what, "the masks", f"be an array of the image's size {list(array.shape[:2])}", got, "give boxes and masks as a dictionary of arrays")
    if isinstance(target, dict):
        counts = {name: len(values) for name, values in target.items() if isinstance(values, np.ndarray)}
        if len(counts) != len(target) or len(set(counts.values())) > 1:
            fail(what, "the target", "have arrays with one entry for each object", counts, "keep what is about the whole image elsewhere")
        boxes = target.get("boxes")
        if boxes is not None and (boxes.ndim != 2 or boxes.shape[1] != 4):
            fail(what, "boxes", "have shape [n, 4]", list(boxes.shape), "give x0, y0, x1, y1")
    return array
