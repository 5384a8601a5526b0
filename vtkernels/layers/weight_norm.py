"""Weight normalisation: length and direction of each filter as parameters of their own."""

import torch
from torch import Tensor, nn


class WeightNormConv2d(nn.Conv2d):
    """A convolution by g v / |v|: `weight_g` is the length of each filter, `weight_v` its direction (Salimans and Kingma, 2016).

    It speeds up training without statistics of a batch; `MeanOnlyBatchNorm2d` is what usually follows it. The initial filters are those
    of a plain convolution. `weight_g` is no direction to shrink: leave it out of weight decay.
    """

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        weight = self.weight
        del self.weight
        self.weight_v = nn.Parameter(weight.detach())
        self.weight_g = nn.Parameter(self._length())

    def _length(self) -> Tensor:
        return torch.linalg.vector_norm(self.weight_v.detach(), dim=(1, 2, 3), keepdim=True)

    @torch.no_grad()
    def set_filters(self, weight: Tensor) -> None:
        """Take over the filters of a plain convolution."""
        self.weight_v.copy_(weight)
        self.weight_g.copy_(self._length())

    def filters(self) -> Tensor:
        return self.weight_v * (self.weight_g / torch.linalg.vector_norm(self.weight_v, dim=(1, 2, 3), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.filters(), self.bias)


class MeanOnlyBatchNorm2d(nn.Module):
    """Subtracts each channel's mean over the batch, or its running mean in evaluation, and adds a bias.

    The scale, which batch normalisation takes from the batch too, is left to weight normalisation.
    """

    def __init__(self, channels: int, momentum: float = 0.1):
        super().__init__()
        self.momentum = momentum
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.running_mean
        if self.training and x.numel():
            mean = x.mean((0, 2, 3))
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
        return x + (self.bias - mean)[:, None, None].to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.bias.numel()}, momentum={self.momentum:g}"
