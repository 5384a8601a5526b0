"""Stochastic depth: a residual branch left out for some samples of the batch."""

import torch
from torch import Tensor, nn

from vtkernels._core import check


class DropPath(nn.Module):
    """Zeroes the branch of each sample with probability `rate` in training, and scales the rest by 1 / (1 - rate).

    The shortcut beside the branch stays, so that what trains is a network of random depth. The two branches of a block draw apart;
    over the blocks the rate usually grows in a line (`linear_rates`).
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            check.fail("DropPath", "rate", "be in [0, 1)", rate, "the published rates are 0 to 0.5")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = torch.empty(x.shape[0], *(1,) * (x.dim() - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * kept.div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def linear_rates(rate: float, depth: int) -> list[float]:
    """Rates from 0 at the first block to `rate` at the last."""
    return [rate * index / max(depth - 1, 1) for index in range(depth)]
