"""Several views of one image for a consistency loss, where the augmentation itself makes one."""

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
