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
