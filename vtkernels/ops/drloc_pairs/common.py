"""What every backend of the pairs shares: the call of the forward, and that of the backward."""

from typing import NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """One call after validation, the same for every backend."""

    features: Tensor  # [B, H, W, C], any strides
    positions: Tensor | None  # [B, m, 4] int64: (row, column) of the first, (row, column) of the second; drawn where None
    num_pairs: int
    signed: bool
    normalize: bool
    seed: int
    offset: int

    @property
    def main(self) -> Tensor:
        """The tensor whose device and dtype decide who can run the call."""
        return self.features

    @property
    def target_dtype(self) -> torch.dtype:
        return torch.promote_types(self.features.dtype, torch.float32)


class Scatter(NamedTuple):
    """One call of the backward: the pairs' gradient goes back to where the pairs came from."""

    grad_pairs: Tensor  # [B, m, 2C], any strides
    positions: Tensor  # [B, m, 4] int64, contiguous, as the forward returned them
    height: int
    width: int

    @property
    def main(self) -> Tensor:
        return self.grad_pairs

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, H, W, C]"""
        return self.grad_pairs.shape[0], self.height, self.width, self.grad_pairs.shape[2] // 2
