"""The golden problem of SAM and small models, for the tests of the optimizers."""

import torch
from torch import Tensor, nn


class Golden:
    """y = w A + b; L = sum tanh(y)^2 + 0.1 sum w^4: small enough to be computed by hand, in float64."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        self.w = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=dtype))
        self.b = nn.Parameter(torch.tensor([0.05, -0.15], dtype=dtype))
        self.params = [self.w, self.b]
        self._matrix = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=dtype)

    def loss(self) -> Tensor:
        return torch.tanh(self.w @ self._matrix + self.b).square().sum() + 0.1 * self.w.pow(4).sum()

    def backward(self) -> Tensor:
        loss = self.loss()
        loss.backward()
        return loss

    def values(self) -> list[float]:
        return [*self.w.detach().flatten().tolist(), *self.b.detach().tolist()]
