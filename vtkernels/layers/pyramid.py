"""Maps of several resolutions brought together, for heads that look at every pixel."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels.layers.norm import GroupNorm


class ConvNormAct(nn.Sequential):
    """Convolution that keeps the size, group normalisation, ReLU.

    Groups are normalised within each image: the same in training and evaluation, for a batch of one, and over any number of processes.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int = 3):
        conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        super().__init__(conv, GroupNorm(channels, math.gcd(32, channels // 2) if channels % 2 == 0 else 1), nn.ReLU())


class TopDown(nn.Module):
    """A feature pyramid: each map, made `channels` wide, gets what the coarser one knows; maps [B, D, H, W] from fine to coarse."""

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        self.laterals = nn.ModuleList(ConvNormAct(own, channels, 1) for own in in_channels)
        self.smooth = nn.ModuleList(ConvNormAct(channels, channels) for _ in in_channels)

    def forward(self, maps: Sequence[Tensor], top: Tensor | None = None) -> list[Tensor]:
        """`top` is what a still coarser level knows, as wide as the pyramid already; it comes back last, as it is."""
        merged = [lateral(own) for lateral, own in zip(self.laterals, maps, strict=True)]
        above = top
        for level in range(len(merged) - 1, -1, -1):
            if above is not None:
                merged[level] = merged[level] + resized(above, merged[level].shape[-2:])
            above = merged[level]
        levels = [smooth(own) for smooth, own in zip(self.smooth, merged, strict=True)]
        return levels if top is None else [*levels, top]


class PyramidPooling(nn.Module):
    """The map beside its means over 1 x 1, 2 x 2, 3 x 3 and 6 x 6 regions (PSPNet): what is around counts for every pixel."""

    def __init__(self, in_channels: int, channels: int, regions: Sequence[int] = (1, 2, 3, 6)):
        super().__init__()
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(count), ConvNormAct(in_channels, channels, 1)) for count in regions)
        self.merge = ConvNormAct(in_channels + len(regions) * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(side_by_side([x, *(pool(x) for pool in self.pools)]))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Maps of `size` (rows, columns), bilinearly, as pixels are areas."""
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """The channels of all maps in one, of the first one's size."""
    return torch.cat([resized(own, maps[0].shape[-2:]) for own in maps], dim=1)
