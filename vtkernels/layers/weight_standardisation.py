"""Weight standardisation: filters of mean zero and variance one."""

import torch
from torch import Tensor, nn


class StdConv2d(nn.Conv2d):
    """A convolution that standardises each of its filters before it is applied, over input channels and kernel, with the biased variance.

    Nothing is learned but the raw filters, and nothing depends on the batch: with group normalisation after it (`GroupNorm`) it takes
    the place of batch normalisation, as in BiT. `std_eps` is added to the variance: BiT's code has 1e-10, timm's 1e-8.
    """

    def __init__(self, *args: object, std_eps: float = 1e-8, **kwargs: object):
        super().__init__(*args, **kwargs)
        self.std_eps = std_eps

    def standardised(self) -> Tensor:
        # half precision cannot hold std_eps
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
        return ((weight - mean) * (variance + self.std_eps).rsqrt()).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardised(), self.bias)
