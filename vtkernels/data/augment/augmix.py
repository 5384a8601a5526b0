"""AugMix: chains of operations, mixed, and mixed with the image; one native call for a picture, from its bytes to its place in the batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.augment.image import (
    ARGUMENTS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Fill,
    Step,
    check_fill,
    check_out,
    check_statistics,
    filter_number,
    op_number,
    planes_shape,
    to_array,
)
from vtkernels.data.augment.native import imgops
from vtkernels.data.augment.random import check_seed

# what does not overlap with the corruptions of ImageNet-C and CIFAR-10-C, and the rest
OPS = ("autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y", "translate_x", "translate_y")
ALL_OPS = (*OPS, "color", "contrast", "brightness", "sharpness")


class Drawn(NamedTuple):
    """What is random about one view: the weights of its chains, the share of their mixture, and each chain's operations."""

    weights: list[float]
    mixture: float
    chains: list[list[Step]]


def _step(name: str, value: float) -> Step:
    if ARGUMENTS[name][1] == 0:
        return (name,)
    return (name, int(value) if value.is_integer() else value)


class AugMix:
    """`(1 - m) n(x) + m sum_i w_i n(chain_i(x))` with w ~ Dirichlet(alpha), m ~ Beta(alpha, alpha) and n the normalisation.

    A chain is `depth` operations (-1: one to three) drawn from `ops` (nine; all thirteen with "all"), at levels drawn up to `severity` of 10.
    """

    def __init__(
        self,
        *,
        width: int = 3,
        depth: int = -1,
        severity: float = 3.0,
        alpha: float = 1.0,
        ops: str | Sequence[str] = OPS,
        mean: float | Sequence[float] = IMAGENET_MEAN,
        std: float | Sequence[float] = IMAGENET_STD,
        filter: str = "bilinear",
        fill: Fill = 0,
    ):
        if not 1 <= width <= 64:
            fail("AugMix", "width", "be from 1 to 64", width, "try 3")
        if depth != -1 and not 1 <= depth <= 64:
            fail("AugMix", "depth", "be from 1 to 64, or -1 to draw 1, 2 or 3", depth, "try -1")
        if not 0.1 <= severity <= 10:
            fail("AugMix", "severity", "be from 0.1 to 10", severity, "try 3, or 1 for ImageNet")
        if not 0 < alpha < 1e6:
            fail("AugMix", "alpha", "be positive and finite", alpha, "try 1")
        self.width, self.depth, self.severity, self.alpha = width, depth, severity, alpha
        self.ops = ALL_OPS if ops == "all" else tuple(ops)
        if not self.ops or not set(self.ops) <= {*ALL_OPS, "invert"}:
            fail("AugMix", "ops", f"be some of {', '.join(ALL_OPS)}, invert", ops, "try 'all'")
        self.statistics = check_statistics("AugMix", mean, std)
        self._filter, self._fill = filter, check_fill("AugMix", fill)
        self._native = self._make_native()

    def _make_native(self):
        numbers = [op_number("AugMix", name) for name in self.ops]
        return imgops().AugMix(self.width, self.depth, self.severity, self.alpha, numbers, filter_number("AugMix", self._filter), self._fill)

    def __call__(self, image: Any, seed: int, out: np.ndarray | None = None) -> np.ndarray:
        """One view as float32 [3, H, W], into `out` where it is given."""
        array = to_array("AugMix", image)
        out = check_out("AugMix", out, planes_shape(array), array)
        self._native.run(array, check_seed("AugMix", seed), False, [0], out, *self.statistics)
        return out

    def views(self, image: Any, seed: int, num_views: int = 3, out: np.ndarray | None = None) -> np.ndarray:
        """The clean image and `num_views - 1` mixes of it, [num_views, 3, H, W]: what the Jensen-Shannon loss compares."""
        if num_views < 1:
            fail("AugMix", "num_views", "be at least 1", num_views, "try 3")
        array = to_array("AugMix", image)
        out = check_out("AugMix", out, (num_views, *planes_shape(array)), array)
        self._native.run(array, check_seed("AugMix", seed), True, list(range(num_views - 1)), out, *self.statistics)
        return out

    def draw(self, seed: int, height: int, width: int, view: int = 0) -> Drawn:
        """What a call with this seed draws for an image of this size; `views` gives its second picture view 0, its third view 1."""
        weights, mixture, chains = self._native.draw(check_seed("AugMix", seed), view, height, width)
        return Drawn(weights, mixture, [[_step(*step) for step in chain] for chain in chains])

    def __getstate__(self) -> dict:
        # workers that are spawned are sent the settings, not the extension's object
        return {name: value for name, value in vars(self).items() if name != "_native"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._native = self._make_native()

    def __repr__(self) -> str:
        return f"AugMix(width={self.width}, depth={self.depth}, severity={self.severity}, alpha={self.alpha}, ops={self.ops})"
