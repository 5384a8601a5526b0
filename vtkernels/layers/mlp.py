"""The transformer's feed-forward layer."""

from torch import Tensor, nn

from vtkernels.layers.activations import activation
from vtkernels.ops.linear import mlp


class Mlp(nn.Module):
    """Linear, activation, Linear over the last axis; `fc1` and `fc2` as in timm and the official models."""

    def __init__(self, dim: int, hidden: int, out: int | None = None, act: str = "gelu", drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out or dim)
        self.act, self.act_name = activation(act), act
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        # dropout stands between the layers, which the op does not have; GPUs have fast products of their own
        if x.device.type != "cpu" or self.training and self.drop.p > 0:
            return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, activation=self.act_name)

    def extra_repr(self) -> str:
        return f"act={self.act_name!r}"


class Mlp2d(nn.Module):
    """The same over the channels of [B, C, H, W] maps, by 1 x 1 convolutions."""

    def __init__(self, dim: int, hidden: int, act: str = "gelu", drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, kernel_size=1)
        self.fc2 = nn.Conv2d(hidden, dim, kernel_size=1)
        self.act, self.act_name = activation(act), act
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))

    def extra_repr(self) -> str:
        return f"act={self.act_name!r}"
