"""Images to try operations on, and Pillow's own words for each operation."""

import random

import numpy as np
import pytest
from optional import peer


def require_imgops() -> None:
    from vtkernels.data.augment.native import imgops

    try:
        imgops()
    except ImportError as error:
        pytest.skip(str(error))


SIDES = (1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 65, 70)


def random_image(rng: random.Random, color: bool | None = None) -> np.ndarray:
    """Noise, one value, few values, ramps or black and white; gray ones too, unless told; odd sides and single pixels among them."""
    height, width = rng.choice(SIDES), rng.choice(SIDES)
    color = rng.random() < 0.7 if color is None else color
    shape = (height, width, 3) if color else (height, width)
    noise = np.random.default_rng(rng.getrandbits(32))
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 5) % 256
    kinds = (
        lambda: noise.integers(0, 256, shape),
        lambda: np.full(shape, rng.randrange(256)),
        lambda: noise.integers(100, 130, shape),
        lambda: np.stack([ramp, 255 - ramp, ramp // 2], -1) if color else ramp,
        lambda: noise.integers(0, 2, shape) * 255,
    )
    return rng.choice(kinds)().astype(np.uint8)


def pillow_step(image, step: tuple, filter: str = "bilinear", fill=(0, 0, 0)):
    """The same step on a Pillow image."""
    Image, ImageEnhance, ImageFilter, ImageOps = (peer(f"PIL.{name}") for name in ("Image", "ImageEnhance", "ImageFilter", "ImageOps"))
    name, *values = step
    if values and isinstance(values[-1], str):
        filter = values.pop()
    geometry = {"resample": Image.Resampling[filter.upper()], "fillcolor": tuple(fill) if image.mode == "RGB" else fill[0]}

    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, **geometry)

    def cutout(left, top, right, bottom):
        result = image.copy()
        result.paste(geometry["fillcolor"], (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)))
        return result

    def solarize_add(addend, threshold=128):
        return image.point([min(255, max(0, v + addend)) if v < threshold else v for v in range(256)] * len(image.getbands()))

    operations = {
        "posterize": lambda bits: ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size),
        "solarize": lambda threshold: ImageOps.solarize(image, threshold),
        "solarize_add": solarize_add,
        "rotate": lambda degrees: image.rotate(degrees, **geometry),
        "shear_x": lambda s: affine(1, s, 0, 0, 1, 0),
        "shear_y": lambda s: affine(1, 0, 0, s, 1, 0),
        "translate_x": lambda p: affine(1, 0, p, 0, 1, 0),
        "translate_y": lambda p: affine(1, 0, 0, 0, 1, p),
        "affine": affine,
        "cutout": cutout,
        "flip": lambda: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "gaussian_blur": lambda radius: image.filter(ImageFilter.GaussianBlur(radius)),
    }
    operations |= {op: lambda op=op: getattr(ImageOps, op)(image) for op in ("autocontrast", "equalize", "invert")}
    operations |= {op.lower(): lambda f, op=op: getattr(ImageEnhance, op)(image).enhance(f) for op in ("Color", "Contrast", "Brightness", "Sharpness")}
    return operations[name](*values)


def pillow(array: np.ndarray, steps: list[tuple], filter: str = "bilinear", fill=(0, 0, 0)) -> np.ndarray:
    image = peer("PIL.Image").fromarray(array)
    for step in steps:
        image = pillow_step(image, step, filter, fill)
    return np.asarray(image)
