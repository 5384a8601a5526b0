"""The pre-norm transformer block."""

import torch
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


class ScaledBlock(Block):
    """A pre-norm block whose branches are scaled by `gamma_1` and `gamma_2` as they return."""

    def __init__(self, dim: int, attn: nn.Module, hidden: int, layer_scale: float, **options: float):
        super().__init__(dim, attn, hidden, **options)
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))
