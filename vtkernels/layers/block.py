"""The pre-norm transformer block."""

from torch import Tensor, nn

from vtkernels.layers.drop_path import DropPath
from vtkernels.layers.mlp import Mlp


class Block(nn.Module):
    """x + mix(norm(x)), then x + mlp(norm(x)), both branches under stochastic depth. `attn` is any mixer of tokens."""

    def __init__(self, dim: int, attn: nn.Module, hidden: int, eps: float = 1e-6, act: str = "gelu", drop: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden, act=act, drop=drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))
