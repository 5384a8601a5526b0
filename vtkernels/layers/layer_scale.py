"""CaiT's LayerScale: one learned factor per channel on a residual branch, near zero at the start."""

import torch
from torch import Tensor, nn


class LayerScale(nn.Module):
    """x -> scale * x over the last axis, or over axis 1 of [B, C, H, W] maps with `channels_first`.

    It stands behind attention or MLP, before stochastic depth, so that a deep network starts as the identity. CaiT starts at 1e-5, its
    deepest variants at 1e-6. Keep it out of weight decay.
    """

    def __init__(self, dim: int, initial: float = 1e-5, channels_first: bool = False):
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), initial))
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale[:, None, None] if self.channels_first else self.scale)
