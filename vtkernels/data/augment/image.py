"""Operations on one image. What Pillow can do comes out with Pillow's pixels, those of its newest version where versions differ."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.augment.native import imgops

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Fill = int | Sequence[int]
# name, then its argument or arguments
Step = tuple

# how many numbers each operation takes, at least and at most
ARGUMENTS = {
    "autocontrast": (0, 0),
    "equalize": (0, 0),
    "invert": (0, 0),
    "posterize": (1, 1),
    "solarize": (1, 1),
    "solarize_add": (1, 2),
    "color": (1, 1),
    "contrast": (1, 1),
    "brightness": (1, 1),
    "sharpness": (1, 1),
    "rotate": (1, 1),
    "shear_x": (1, 1),
    "shear_y": (1, 1),
    "translate_x": (1, 1),
    "translate_y": (1, 1),
    "affine": (6, 6),
    "cutout": (4, 4),
    "flip": (0, 0),
    "gaussian_blur": (1, 1),
}
AFFINE_FILTERS = ("nearest", "bilinear", "bicubic")
# offsets into an image are 32 bits
_MOST_PIXELS = 1 << 27
# rows and columns that the native code adds around an image
_BORDER = 4


def apply(image: Any, steps: Sequence[Step], *, filter: str = "bilinear", fill: Fill = 0) -> np.ndarray:
    """The image after some operations in a row, each a tuple of name and arguments, all in one call.

    ========================================  ==========================================================================================
    `autocontrast` `equalize` `invert`        of `ImageOps`
    `posterize bits`                          0 to 8; 0 makes the image black
    `solarize threshold`                      inverts what is not below
    `solarize_add addend [threshold]`         adds to what is below the threshold (128)
    `color` `contrast` `brightness`           factors of `ImageEnhance`: 0 gray, gray, black, 1 the image; any number
    `sharpness factor`                        0 smooth, 1 the image
    `rotate degrees`                          counter-clockwise
    `shear_x s` `shear_y s`                   `transform(AFFINE, (1, s, 0, 0, 1, 0))` and `(1, 0, 0, s, 1, 0)`
    `translate_x p` `translate_y p`           `transform(AFFINE, (1, 0, p, 0, 1, 0))` and `(1, 0, 0, 0, 1, p)`: positive to the left and up
    `affine a b c d e f`                      from output to input
    `cutout left top right bottom`            filled
    `flip`                                    left to right
    `gaussian_blur radius`                    `ImageFilter.GaussianBlur`
    ========================================  ==========================================================================================

    `filter` (nearest, bilinear, bicubic) and `fill` (a number, or one for each channel) are those of the geometric operations; a step may
    bring its own filter as a string at its end.
    """
    array, color = to_array("apply", image), check_fill("apply", fill)
    return imgops().apply(array, [_encode(step, filter, color) for step in steps])


def resize(image: Any, size: int | tuple[int, int], filter: str = "bicubic") -> np.ndarray:
    """To (height, width), antialiased: nearest, box, bilinear, hamming, bicubic or lanczos. Of an int, the shorter side is made as long."""
    array = to_array("resize", image)
    height, width = array.shape[:2]
    if isinstance(size, (int, np.integer)):
        size = (size, int(size * width / height)) if height <= width else (int(size * height / width), size)
    if len(size) != 2 or not all(isinstance(side, (int, np.integer)) and side > 0 for side in size):
        fail("resize", "size", "be positive (height, width)", size, "try an int for the shorter side")
    if math.prod(size) > _MOST_PIXELS:
        fail("resize", "size", f"have at most {_MOST_PIXELS} pixels", size, "try a smaller one")
    return imgops().resize(array, *size, _filter_number("resize", filter, _filters()))


def crop(image: Any, top: int, left: int, height: int, width: int) -> np.ndarray:
    """A view of a part of the image: nothing is copied."""
    array = to_array("crop", image)
    if not (0 <= top <= top + height <= array.shape[0] and 0 <= left <= left + width <= array.shape[1] and height > 0 and width > 0):
        fail("crop", "the box", f"lie in the image {list(array.shape[:2])}", f"rows {top}:{top + height}, columns {left}:{left + width}", "try pad first")
    return array[top : top + height, left : left + width]


def pad(image: Any, margin: int, fill: Fill = 0) -> np.ndarray:
    """The image with a margin on all sides."""
    array, color = to_array("pad", image), check_fill("pad", fill)
    if margin < 0:
        fail("pad", "margin", "be at least 0", margin, "try crop")
    shape = (array.shape[0] + 2 * margin, array.shape[1] + 2 * margin, *array.shape[2:])
    out = np.empty(shape, np.uint8)
    out[:] = color if array.ndim == 3 else color[0]
    out[margin : margin + array.shape[0], margin : margin + array.shape[1]] = array
    return out


def normalize(
    image: Any, mean: float | Sequence[float] = IMAGENET_MEAN, std: float | Sequence[float] = IMAGENET_STD, out: np.ndarray | None = None
) -> np.ndarray:
    """(v / 255 - mean) / std as float32 [3, H, W] (or [1, H, W]), into `out` where it is given."""
    array = to_array("normalize", image)
    out = check_out("normalize", out, planes_shape(array), array)
    imgops().normalize(array, out, *check_statistics("normalize", mean, std))
    return out


def to_array(what: str, image: Any) -> np.ndarray:
    """A uint8 array the extension can read: rows may lie apart, pixels may not."""
    mode = getattr(image, "mode", "RGB")
    # a tensor's mode is a method
    if isinstance(mode, str) and mode not in ("RGB", "L"):
        fail(what, "a Pillow image", "be of mode RGB or L", mode, "try image.convert('RGB')")
    array = image if isinstance(image, np.ndarray) else np.asarray(image)
    if array.dtype != np.uint8:
        fail(what, "the image", "have dtype uint8", array.dtype, "try (image * 255).round().astype(np.uint8) for floats in [0, 1]", TypeError)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        hint = "try image.transpose(1, 2, 0)" if array.ndim == 3 and array.shape[0] in (1, 3) else "try Image.convert('RGB')"
        fail(what, "the image", "have shape [H, W, 3] or [H, W]", list(array.shape), hint)
    if array.size == 0:
        fail(what, "the image", "have pixels", list(array.shape), "leave empty images out")
    if (array.shape[0] + _BORDER) * (array.shape[1] + _BORDER) > _MOST_PIXELS:
        fail(what, "the image", f"have at most {_MOST_PIXELS} pixels, {_BORDER} more to each side of it counted", list(array.shape), "try a crop")
    channels = array.shape[2] if array.ndim == 3 else 1
    dense = array.strides[1] == channels and (array.ndim == 2 or array.strides[2] == 1) and array.strides[0] >= 0
    return array if dense else array.copy("C")


def planes_shape(array: np.ndarray) -> tuple[int, int, int]:
    return (array.shape[2] if array.ndim == 3 else 1, *array.shape[:2])


def check_out(what: str, out: np.ndarray | None, shape: tuple[int, ...], image: np.ndarray | None = None) -> np.ndarray:
    if out is None:
        return np.empty(shape, np.float32)
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        kind = "" if not isinstance(out, np.ndarray) or out.flags.writeable else "read-only "
        got = f"{kind}{out.dtype} {list(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        fail(what, "out", f"be a writeable contiguous float32 array {list(shape)}", got, "try tensor.numpy() of a float32 tensor, or out=None")
    if image is not None and np.may_share_memory(image, out):
        fail(what, "out", "lie elsewhere than the image", "memory that both share", "try out=None")
    return out


def check_statistics(what: str, mean: float | Sequence[float], std: float | Sequence[float]) -> tuple[list[float], list[float]]:
    """One number stands for all channels."""
    mean, std = (np.atleast_1d(np.asarray(values, np.float64)).tolist() for values in (mean, std))
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, 3):
            fail(what, name, "have 1 or 3 numbers", values, "give one for each channel")
    if not all(math.isfinite(v) for v in mean + std) or 0.0 in std:
        fail(what, "mean and std", "be finite, and std not 0", (mean, std), "try 1 for std to leave the scale as it is")
    return mean * (3 // len(mean)), std * (3 // len(std))


def check_fill(what: str, fill: Fill) -> tuple[int, int, int]:
    color = tuple(fill) if isinstance(fill, Sequence) else (fill,) * 3
    if len(color) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in color):
        fail(what, "fill", "be an int from 0 to 255, or three", fill, "try (124, 116, 104), ImageNet's mean")
    return color


@functools.cache
def _op_numbers() -> dict[str, int]:
    return {name: number for number, name in enumerate(imgops().OPS)}


@functools.cache
def _filters() -> dict[str, int]:
    return {name: number for number, name in enumerate(imgops().FILTERS)}


@functools.cache
def _affine_filters() -> dict[str, int]:
    return {name: _filters()[name] for name in AFFINE_FILTERS}


def _filter_number(what: str, name: str, known: dict[str, int]) -> int:
    number = known.get(name)
    if number is None:
        fail(what, "filter", f"be one of {', '.join(known)}", repr(name), "try bilinear")
    return number


def op_number(what: str, name: str) -> int:
    number = _op_numbers().get(name)
    if number is None:
        fail(what, "an operation", f"be one of {', '.join(_op_numbers())}", repr(name), "try another name")
    return number


def filter_number(what: str, name: str) -> int:
    """Of a geometric operation."""
    return _filter_number(what, name, _affine_filters())


def _encode(step: Step, filter: str, fill: tuple[int, int, int]) -> tuple:
    name, *values = (step,) if isinstance(step, str) else step
    if values and isinstance(values[-1], str):
        filter = values.pop()
    number = op_number("apply", name)
    least, most = ARGUMENTS[name]
    if not least <= len(values) <= most or not all(math.isfinite(v) and abs(v) < 1e9 for v in values):
        fail("apply", name, f"have {least if least == most else f'{least} or {most}'} finite numbers", values, f"try ({name!r}, ...)")
    if name == "posterize" and not (0 <= values[0] <= 8 and values[0] == int(values[0])):
        fail("apply", "posterize", "keep 0 to 8 bits", values[0], "try int(bits)")
    if name == "gaussian_blur" and not 0 <= values[0] <= 1000:
        fail("apply", "gaussian_blur", "have a radius from 0 to 1000", values[0], "try 2")
    if name == "solarize_add" and len(values) == 1:
        values.append(128)
    return number, values, filter_number("apply", filter), fill
