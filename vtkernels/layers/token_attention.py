"""Attention that changes the width of its tokens, as in the tokenizers of T2T-ViT and ViTAEv2."""

from torch import Tensor, nn
from torch.nn import functional as F


class TokenAttention(nn.Module):
    """[B, N, dim] -> [B, N, width]. The values themselves are the shortcut around the attention.

    `qkv` has no bias and lays its output out as (3, heads, head_dim). `scale` multiplies the scores; T2T-ViT has the
    input's dim ** -0.5 here.
    """

    def __init__(self, dim: int, width: int, scale: float, num_heads: int = 1):
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale
        self.qkv = nn.Linear(dim, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each [B, h, N, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return v.transpose(1, 2).flatten(2) + self.proj(mixed.transpose(1, 2).flatten(2))

    def attention_weights(self, x: Tensor) -> Tensor:
        """[B, h, N, N]: what `forward` weighs the values with."""
        q, k, _ = self.heads(x)
        return (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
