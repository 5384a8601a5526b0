"""The golden problem of SAM and small models, for the tests of the optimizers."""

import pytest
import torch
from torch import Tensor, nn

BASES = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (torch.optim.AdamW, {"lr": 0.01}),
    (torch.optim.RMSprop, {"lr": 0.01}),
]
of_each_base = pytest.mark.parametrize(("base", "options"), BASES, ids=[base.__name__ for base, _ in BASES])


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


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).to(dtype)


def bits(tensor: Tensor) -> bytes:
    """The memory itself: equal where a difference of zeros' signs or of NaNs would show."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
