"""RandAugment as timm defines it, in its grammar, one native call for an image."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.augment.image import Fill, Step, apply, to_array
from vtkernels.data.augment.levels import ENHANCEMENTS, TIMM, TIMM_INCREASING
from vtkernels.data.augment.random import Stream

# ImageNet's mean colour
MEAN_FILL = (124, 116, 104)
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPS = ("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", *ENHANCEMENTS, *GEOMETRIC[1:])
# timm's `tweights`: mostly geometry
WEIGHTS = {
    "rotate": 3.0,
    "shear_x": 2.0,
    "shear_y": 2.0,
    "translate_x": 1.0,
    "translate_y": 1.0,
    "color": 0.25,
    "sharpness": 0.25,
    "autocontrast": 0.25,
    "solarize": 0.05,
    "solarize_add": 0.05,
    "contrast": 0.05,
    "brightness": 0.05,
    "equalize": 0.05,
    "posterize": 0.05,
    "invert": 0.05,
}


class RandAugment:
    """`num_ops` operations drawn from `ops` (a mapping gives weights, and none is drawn twice), each applied with probability `prob`.

    Levels are `magnitude`, or with `mstd` normal around it (infinite: uniform below it), in any case within 0 and `mmax`. `increasing` takes
    the arguments that change the image more the higher the level. Geometric operations fill with `fill` and draw bilinear or bicubic, unless
    `filter` is given.
    """

    def __init__(
        self,
        magnitude: float = 9,
        num_ops: int = 2,
        prob: float = 0.5,
        mstd: float = 0.0,
        mmax: float = 10.0,
        increasing: bool = False,
        ops: Sequence[str] | Mapping[str, float] = OPS,
        fill: Fill = MEAN_FILL,
        filter: str | None = None,
    ):
        unknown = [name for name in ops if name not in TIMM]
        if unknown or not ops:
            fail("RandAugment", "ops", f"be some of {', '.join(TIMM)}", unknown or ops, "leave it out for timm's fifteen")
        for name, value, most in (("magnitude", magnitude, 100.0), ("prob", prob, 1.0), ("mstd", mstd, math.inf), ("mmax", mmax, 100.0)):
            if not 0 <= value <= most:
                fail("RandAugment", name, f"be from 0 to {most:g}", value, "try RandAugment.from_config('rand-m9-mstd0.5-inc1')")
        if num_ops < 0 or (isinstance(ops, Mapping) and num_ops > len(ops)):
            fail("RandAugment", "num_ops", "be from 0 to the number of weighted operations", num_ops, "try 2")
        self.magnitude, self.num_ops, self.prob, self.mstd, self.mmax, self.increasing = magnitude, num_ops, prob, mstd, mmax, increasing
        self.ops, self.fill, self.filter = ops, fill, filter

    @classmethod
    def from_config(cls, config: str, **settings: Any) -> "RandAugment":
        """timm's strings: `rand-m9-n2-p0.5-mstd0.5-mmax10-inc1-tweights`, in any order; what is left out is 10, 2, 0.5, 0, 10, off, all."""
        head, *parts = config.split("-")
        if head != "rand":
            fail("RandAugment", "the config", "start with rand", repr(config), "try rand-m9-mstd0.5-inc1")
        found: dict[str, Any] = {"magnitude": 10}
        keys = {"m": "magnitude", "n": "num_ops", "p": "prob", "mstd": "mstd", "mmax": "mmax", "inc": "increasing"}
        for part in parts:
            key, number = (
                re.fullmatch(r"([a-z]+)(inf|\d+\.?\d*|\.\d+)?", part).groups() if re.fullmatch(r"([a-z]+)(inf|\d+\.?\d*|\.\d+)?", part) else (part, None)
            )
            if key == "tweights":
                found["ops"] = WEIGHTS
            elif key in keys and number is not None:
                found[keys[key]] = float(number)
            else:
                fail(
                    "RandAugment", "each part of the config", "be m, n, p, mstd, mmax or inc and a number, or tweights", repr(part), "try rand-m9-mstd0.5-inc1"
                )
        found["num_ops"], found["increasing"] = int(found.get("num_ops", 2)), bool(found.get("increasing", False))
        if found.get("mstd", 0) > 100:
            found["mstd"] = math.inf
        return cls(**found | settings)

    def draw(self, seed: int, height: int, width: int) -> list[Step]:
        """What a call with this seed applies to an image of this size."""
        stream = Stream(seed)
        levels = TIMM_INCREASING if self.increasing else TIMM
        steps = []
        for name in self._choose(stream):
            if self.prob < 1 and stream.uniform() > self.prob:
                continue
            step = levels[name](stream, self._level(stream), height, width)
            if name in GEOMETRIC:
                step = (*step, self.filter or ("bilinear", "bicubic")[stream.below(2)])
            steps.append(step)
        return steps

    def __call__(self, image: Any, seed: int) -> np.ndarray:
        array = to_array("RandAugment", image)
        steps = self.draw(seed, *array.shape[:2])
        return apply(array, steps, fill=self.fill) if steps else array

    def _choose(self, stream) -> list[str]:
        if not isinstance(self.ops, Mapping):
            return [self.ops[stream.below(len(self.ops))] for _ in range(self.num_ops)]
        # without replacement: the largest of the keys u^(1/weight) are such a sample
        keys = {name: stream.uniform() ** (1 / weight) for name, weight in self.ops.items() if weight > 0}
        return sorted(keys, key=keys.get, reverse=True)[: self.num_ops]

    def _level(self, stream) -> float:
        level = self.magnitude
        if self.mstd == math.inf:
            level = stream.uniform(0.0, level)
        elif self.mstd > 0:
            level += self.mstd * stream.normal()
        return max(0.0, min(level, self.mmax))
