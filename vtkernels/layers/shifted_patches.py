"""Images cut into patches pixel by pixel, and shifted patch tokenization, which shows each patch its surroundings.

Lee et al., "Vision Transformer for Small-Size Datasets", 2021.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check


class Patches(nn.Module):
    """[B, C, H, W] -> [B, H / p, W / p, p p C]: the values of a patch by row, column, channel."""

    def __init__(self, patch_size: int):
        super().__init__()
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        size = self.patch_size
        if x.shape[2] % size or x.shape[3] % size:
            check.fail("Patches", "rows and columns", f"be multiples of patch_size={size}", tuple(x.shape[2:]), "pad or resize the images")
        # [B, C, rows, p, columns, p]
        x = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3)

    def extra_repr(self) -> str:
        return f"patch_size={self.patch_size}"


class ShiftedPatches(nn.Module):
    """[B, C, H, W] -> [B, H / p, W / p, dim]: patches of the image and of its four copies moved diagonally by half a patch.

    The copies are stacked on the channels, zeros enter at the border, and each patch is normalised and mapped. Parameters
    are named `merging.1` (norm) and `merging.2` as in the official code. Besides images it embeds maps, in place of
    patch merging (`patch_size=2`).
    """

    def __init__(self, patch_size: int, in_channels: int, dim: int, eps: float = 1e-5):
        super().__init__()
        self.shift = patch_size // 2
        values = 5 * in_channels * patch_size**2
        self.merging = nn.Sequential(Patches(patch_size), nn.LayerNorm(values, eps=eps), nn.Linear(values, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.merging(self.with_shifts(x))

    def with_shifts(self, x: Tensor) -> Tensor:
        """[B, 5 C, H, W]: the image, then moved down-right, down-left, up-right, up-left."""
        rows, columns = x.shape[2:]
        padded = F.pad(x, (self.shift,) * 4)
        starts = [(row, column) for row in (0, 2 * self.shift) for column in (0, 2 * self.shift)]
        return torch.cat((x, *(padded[:, :, row : row + rows, column : column + columns] for row, column in starts)), 1)
