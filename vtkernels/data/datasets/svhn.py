"""Street View House Numbers, cropped digits."""

from pathlib import Path

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.datasets._base import ArrayDataset, Statistics, checked_split, found, labels_within, read_mat, root_of, same_length
from vtkernels.data.datasets._registry import register

SOURCE = "http://ufldl.stanford.edu/housenumbers"
STATISTICS = Statistics((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))


@register("svhn")
def svhn(name: str, split: str, *, root: str | Path | None) -> ArrayDataset:
    """`root` holds train_32x32.mat, test_32x32.mat and perhaps extra_32x32.mat."""
    checked_split(name, split, ("train", "test", "extra"))
    file = f"{split}_32x32.mat"
    path = found(name, root_of(name, root, SOURCE), "train_32x32.mat, test_32x32.mat, extra_32x32.mat", SOURCE, file)
    content = read_mat(path)
    if "X" not in content or "y" not in content or content["X"].ndim != 4 or content["X"].shape[2] != 3 or content["X"].dtype != np.uint8:
        fail(name, file, "hold uint8 X [32, 32, 3, N] and y [N, 1]", sorted(key for key in content if not key.startswith("__")), f"get it anew from {SOURCE}")
    # the published label of the digit 0 is 10
    labels_within(name, content["y"], 1, 10)
    targets = content["y"].reshape(-1).astype(np.int64) % 10
    images = np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2))
    same_length(name, images, targets)
    return ArrayDataset(images, targets, [str(digit) for digit in range(10)], STATISTICS)
