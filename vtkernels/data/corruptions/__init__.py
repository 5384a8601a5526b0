"""The corruptions of ImageNet-C and CIFAR-C, made from any images: by their published parameters, and always the same for one seed.

Where the published procedure calls on ImageMagick, OpenCV or photographs, this one computes the same quantity with NumPy and SciPy; figures to
compare with the literature belong to the published files (`create_dataset("imagenet-c", ...)`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.augment.random import sample_seed
from vtkernels.data.corruptions._parameters import CIFAR, IMAGENET
from vtkernels.data.datasets._base import ImageDataset, needs, read_image

try:
    from vtkernels.data.corruptions import _functions
except ImportError:
    needs("SciPy and Pillow", "corruptions")

CORRUPTIONS = tuple(IMAGENET)[:15]
EXTRA_CORRUPTIONS = tuple(IMAGENET)[15:]
# the longer side up to which images count as CIFAR's
SMALL = 64

__all__ = ["CORRUPTIONS", "EXTRA_CORRUPTIONS", "Corrupted", "corrupt"]


def corrupt(
    image: np.ndarray,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    parameters: str = "auto",
    frost_photographs: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """A corrupted copy of a uint8 image [H, W, 3].

    Args:
        name: one of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        severity: 1 to 5.
        seed: what all random parts are drawn from.
        parameters: "imagenet" or "cifar", after whose size the strengths are chosen; "auto" takes CIFAR's up to 64 pixels.
        frost_photographs: uint8 RGB images for "frost", each larger than the image. Without them ice is drawn.
    """
    if name not in IMAGENET:
        fail("corrupt", "name", f"be one of {', '.join(IMAGENET)}", repr(name))
    if severity not in (1, 2, 3, 4, 5):
        fail("corrupt", "severity", "be 1, 2, 3, 4 or 5", severity)
    if parameters not in ("auto", "imagenet", "cifar"):
        fail("corrupt", "parameters", "be 'auto', 'imagenet' or 'cifar'", repr(parameters))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        fail("corrupt", "image", "be a uint8 array [H, W, 3]", got)
    small = max(image.shape) <= SMALL if parameters == "auto" else parameters == "cifar"
    strength = (CIFAR if small else IMAGENET)[name][severity - 1]
    rng = np.random.default_rng(seed)
    if name == "frost":
        corrupted = _functions.frost(image / 255, strength, rng, _ice(frost_photographs, image.shape, small))
    else:
        corrupted = getattr(_functions, name)(image / 255, strength, rng)
    # published values are cut off, not rounded; a thousandth keeps whole numbers whole
    return np.floor(np.clip(corrupted, 0, 1) * 255 + 1e-3).astype(np.uint8)


def _ice(photographs: Sequence[np.ndarray], shape: tuple[int, ...], small: bool) -> list[np.ndarray]:
    """As floats; for small images at a fifth of their size, as published."""
    ice = [photograph[2::5, 2::5] / 255 if small else photograph / 255 for photograph in photographs]
    for photograph in ice:
        if photograph.ndim != 3 or photograph.shape[2] != 3 or photograph.shape[0] < shape[0] or photograph.shape[1] < shape[1]:
            fail("corrupt", "frost_photographs", f"be RGB and cover {list(shape)} (five times that for small images)", list(photograph.shape))
    return ice


class Corrupted(ImageDataset):
    """A data set under one corruption; image i depends on (seed, i) and nothing else.

    Args:
        frost_photographs: paths of photographs for "frost"; the published procedure has five.
    """

    def __init__(
        self, dataset: ImageDataset, name: str, severity: int, *, seed: int = 0, parameters: str = "auto", frost_photographs: Sequence[Path | str] = ()
    ):
        super().__init__(dataset.classes, dataset.targets, dataset.statistics)
        self.dataset, self.name, self.severity, self.seed, self.parameters = dataset, name, severity, seed, parameters
        self.frost_photographs = [read_image(path) for path in frost_photographs]
        if seed < 0:
            fail("Corrupted", "seed", "be at least 0", seed)
        # a wrong name or severity is told now, not in the middle of an epoch
        corrupt(np.zeros((1, 1, 3), np.uint8), name="contrast" if name in IMAGENET else name, severity=severity, parameters=parameters)

    def image(self, index: int) -> np.ndarray:
        seed = sample_seed(self.seed, index)
        image = self.dataset.image(index)
        options = {"seed": seed, "parameters": self.parameters, "frost_photographs": self.frost_photographs}
        return corrupt(image, self.name, self.severity, **options)

    def target(self, index: int):
        return self.dataset.target(index)
