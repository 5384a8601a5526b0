"""scikit-learn's handwritten digits: 1797 images of 8 x 8 that come with the library, so that training needs no file."""

import numpy as np
import torch
from torch.nn import functional as F

from vtkernels._core.check import fail
from vtkernels.data.datasets._base import ArrayDataset, Statistics, checked_split, needs
from vtkernels.data.datasets._registry import register

# every fifth image of each class is for testing
TEST_SHARE = 5


@register("digits")
def digits(name: str, split: str, *, size: int = 32, channels: int = 3) -> ArrayDataset:
    """Split "train" (1442 images) or "test" (355), the same for everybody; `size` 8 leaves the pixels as they are."""
    checked_split(name, split, ("train", "test"))
    if size < 1 or channels not in (1, 3):
        fail(name, "size and channels", "be positive and 1 or 3", (size, channels))
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        needs("scikit-learn", "the set digits")
    content = load_digits()
    targets = content.target.astype(np.int64)
    # published values are 0..16
    images = np.rint(content.images * (255 / 16)).astype(np.uint8)
    rank_in_class = np.empty(len(targets), dtype=np.int64)
    for label in range(10):
        rank_in_class[targets == label] = np.arange((targets == label).sum())
    chosen = (rank_in_class % TEST_SHARE == TEST_SHARE - 1) == (split == "test")
    images, targets = images[chosen], targets[chosen]
    if size != 8:
        scaled = F.interpolate(torch.from_numpy(images)[:, None].float(), (size, size), mode="bilinear", align_corners=False, antialias=size < 8)
        images = scaled[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()
    images = np.repeat(images[..., None], channels, axis=3)
    return ArrayDataset(images, targets, [str(digit) for digit in range(10)], Statistics((0.305,) * channels, (0.376 if size == 8 else 0.324,) * channels))
