"""CaiT's two attentions by their published equations, under the names of facebookresearch/deit's file."""

import torch
from torch import Tensor, nn


class Class_Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = True, attn_drop: float = 0.0):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=qkv_bias) for _ in range(3))
        self.attn_drop, self.proj, self.proj_drop = nn.Dropout(attn_drop), nn.Linear(dim, dim), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (self.q(x[:, :1]), self.k(x), self.v(x)))
        weights = self.attn_drop((q * self.scale @ k.mT).softmax(-1))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))


class Attention_talking_head(nn.Module):
    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = True, attn_drop: float = 0.0):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.attn_drop = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Dropout(attn_drop)
        self.proj, self.proj_l, self.proj_w = nn.Linear(dim, dim), nn.Linear(num_heads, num_heads), nn.Linear(num_heads, num_heads)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.mixed(self.mixed(q * self.scale @ k.mT, self.proj_l).softmax(-1), self.proj_w)
        return self.proj_drop(self.proj((self.attn_drop(weights) @ v).transpose(1, 2).flatten(2)))

    @staticmethod
    def mixed(scores: Tensor, layer: nn.Linear) -> Tensor:
        return layer(scores.movedim(1, -1)).movedim(-1, 1)


class Trunk(nn.Sequential):
    """Both, one after the other, and the class token's row."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


def trunk(dim: int, heads: int, **options) -> Trunk:
    torch.manual_seed(0)
    return Trunk(Attention_talking_head(dim, heads, **options), Class_Attention(dim, heads, **options))
