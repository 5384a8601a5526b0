"""The transformer's feed-forward layer."""

from torch import Tensor, nn

from vtkernels.layers.activations import activation


class Mlp(nn.Module):
    """Linear, activation, Linear over the last axis; `fc1` and `fc2` as in timm and the official models."""

    def __init__(self, dim: int, hidden: int, out: int | None = None, act: str = "gelu", drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out or dim)
        self.act, self.act_name = activation(act), act
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))

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
