"""AutoAugment: one of a policy's pairs of operations, drawn anew for each image; and the same with nothing learned."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.augment.image import Fill, Step, apply, to_array
from vtkernels.data.augment.levels import PAPER, TIMM
from vtkernels.data.augment.policies import POLICIES, SubPolicy
from vtkernels.data.augment.rand_augment import GEOMETRIC, MEAN_FILL
from vtkernels.data.augment.random import Stream

# operations that ImageNet-C and CIFAR-10-C test with
CORRUPTIONS = ("contrast", "brightness", "sharpness", "color", "cutout")
_GRAY = 128
# the paper's: smooth where lines would break
_PAPER_FILTERS = {"shear_x": "bicubic", "shear_y": "bicubic", "translate_x": "nearest", "translate_y": "nearest", "rotate": "nearest"}


def _step(stream, name: str, level: float, height: int, width: int, paper: bool) -> Step:
    step = (PAPER if paper else TIMM)[name](stream, level, height, width)
    if name not in GEOMETRIC:
        return step
    return (*step, _PAPER_FILTERS[name] if paper else ("bilinear", "bicubic")[stream.below(2)])


class AutoAugment:
    """A policy by name, `imagenet` (25 pairs), `imagenet_v0` (25), `cifar` (25), `cifar_full` (95), `svhn` (25), or pairs of one's own.

    The policies for ImageNet take their arguments from timm's table, the others from the paper's, relative to the image's size. `exclude`
    leaves operations out; with `CORRUPTIONS` the result may be held to ImageNet-C.
    """

    def __init__(self, policy: str | Sequence[SubPolicy] = "imagenet", exclude: Sequence[str] = (), fill: Fill | None = None):
        if isinstance(policy, str) and policy not in POLICIES:
            fail("AutoAugment", "policy", f"be one of {', '.join(POLICIES)}", repr(policy), "try imagenet")
        self.paper = not (isinstance(policy, str) and policy.startswith("imagenet"))
        pairs = POLICIES[policy] if isinstance(policy, str) else policy
        self.policy = [tuple(part for part in pair if part[0] not in exclude) for pair in pairs]
        unknown = {part[0] for pair in self.policy for part in pair} - set(PAPER if self.paper else TIMM)
        if unknown or not self.policy:
            fail("AutoAugment", "policy", f"have pairs of (name, probability, level) of {', '.join(PAPER)}", sorted(unknown), "try imagenet")
        self.fill = fill if fill is not None else _GRAY if self.paper else MEAN_FILL

    def draw(self, seed: int, height: int, width: int) -> list[Step]:
        """What a call with this seed applies to an image of this size."""
        stream = Stream(seed)
        pair = self.policy[stream.below(len(self.policy))]
        return [_step(stream, name, level, height, width, self.paper) for name, probability, level in pair if stream.uniform() < probability]

    def __call__(self, image: Any, seed: int) -> np.ndarray:
        array = to_array("AutoAugment", image)
        steps = self.draw(seed, *array.shape[:2])
        return apply(array, steps, fill=self.fill) if steps else array


class RandomAutoAugment:
    """Two operations with probabilities and levels all uniformly random: what is left of AutoAugment without what it learned."""

    def __init__(self, num_ops: int = 2, exclude: Sequence[str] = (), fill: Fill = _GRAY):
        self.ops = [name for name in PAPER if name not in exclude]
        if not self.ops or num_ops < 1:
            fail("RandomAutoAugment", "num_ops and the operations left", "be at least 1", (num_ops, self.ops), "exclude less")
        self.num_ops, self.fill = num_ops, fill

    def draw(self, seed: int, height: int, width: int) -> list[Step]:
        """What a call with this seed applies to an image of this size."""
        stream, steps = Stream(seed), []
        for _ in range(self.num_ops):
            name, probability, level = self.ops[stream.below(len(self.ops))], stream.uniform(), stream.below(10)
            if stream.uniform() < probability:
                steps.append(_step(stream, name, level, height, width, paper=True))
        return steps

    def __call__(self, image: Any, seed: int) -> np.ndarray:
        array = to_array("RandomAutoAugment", image)
        steps = self.draw(seed, *array.shape[:2])
        return apply(array, steps, fill=self.fill) if steps else array
