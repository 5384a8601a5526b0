"""Weight normalisation: length and direction of each filter as parameters of their own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check


class _WeightNorm:
    """Mixed into a layer, makes its `weight` g v / |v| for each output: `weight_g` is the length, `weight_v` the direction."""

    weight_v: nn.Parameter
    weight_g: nn.Parameter

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        weight = self.weight
        del self.weight
        self.weight_v = nn.Parameter(weight.detach())
        self.weight_g = nn.Parameter(self._length(self.weight_v.detach()))

    def _length(self, weight: Tensor) -> Tensor:
        return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)

    @torch.no_grad()
    def set_filters(self, weight: Tensor) -> None:
        """Take over the filters of a plain layer."""
        self.weight_v.copy_(weight)
        self.weight_g.copy_(self._length(self.weight_v))

    def filters(self) -> Tensor:
        return self.weight_v * (self.weight_g / self._length(self.weight_v))

    @torch.no_grad()
    def fit(self, x: Tensor) -> Tensor:
        """Choose lengths and biases for which the outputs of this first batch have mean 0 and variance 1; returns those outputs.

        The initialisation of the paper: layer by layer, each on the outputs of those before.
        """
        if self.bias is None:
            check.fail(type(self).__name__, "bias", "be there to centre the outputs", None, "build the layer with bias=True")
        self.weight_g.fill_(1.0)
        self.bias.zero_()
        y = self(x)
        # outputs are the second axis of maps and the last of all else
        others = [axis for axis in range(y.dim()) if axis != (1 if self.weight_v.dim() > 2 else y.dim() - 1)]
        variance, mean = torch.var_mean(y, others, correction=0)
        if not (variance > 0).all():
            check.fail(type(self).__name__, "x", "make every output vary", f"{int((variance <= 0).sum())} outputs that do not", "give a batch of data")
        self.weight_g.mul_(variance.rsqrt().view_as(self.weight_g))
        self.bias.copy_(-mean * variance.rsqrt())
        return self(x)


class WeightNormLinear(_WeightNorm, nn.Linear):
    """A linear layer by g v / |v|: `weight_g` is the length of each output's weights, `weight_v` their direction (Salimans and Kingma, 2016).

    With an activation phi behind it, y = phi(w x + b) with w = g v / |v|. Nothing depends on the batch. The initial weights are those of
    a plain layer, or `fit` chooses their lengths from a batch. `weight_g` is no direction to shrink: leave it out of weight decay.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.filters(), self.bias)


class WeightNormConv2d(_WeightNorm, nn.Conv2d):
    """A convolution by g v / |v|: `weight_g` is the length of each filter, `weight_v` its direction (Salimans and Kingma, 2016).

    It speeds up training without statistics of a batch; `MeanOnlyBatchNorm2d` is what usually follows it. The initial filters are those
    of a plain convolution. `weight_g` is no direction to shrink: leave it out of weight decay.
    """

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
