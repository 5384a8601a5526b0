"""Several views of one image for a consistency loss, of augmentations that make one each."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vtkernels.data.augment import sample_seed
from vtkernels.data.augment.image import to_array


class CleanAndAugmented:
    """The image itself, and `views - 1` independent augmentations of it, as a list."""

    def __init__(self, policy: Callable[..., Any], views: int):
        self.policy, self.views = policy, views

    def __call__(self, image: Any, seed: int) -> list[np.ndarray]:
        array = to_array("CleanAndAugmented", image)
        return [array, *(self.policy(array, seed=sample_seed(seed, 0, view)) for view in range(1, self.views))]


class WeakAndStrong:
    """Two augmentations of one image that know nothing of each other, as a list."""

    def __init__(self, weak: Callable[..., Any], strong: Callable[..., Any]):
        self.weak, self.strong = weak, strong

    def __call__(self, image: Any, seed: int) -> list[np.ndarray]:
        return [augment(image, seed=sample_seed(seed, 0, view)) for view, augment in enumerate((self.weak, self.strong))]
