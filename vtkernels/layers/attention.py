"""Full multi-head self-attention, on torch's fused kernel."""

from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check


class Attention(nn.Module):
    """Self-attention of all tokens: [B, N, C] -> [B, N, C], with timm's parameter names `qkv` and `proj`.

    `qkv` lays its output out as (3, heads, head_dim).
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, scale: float | None = None, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            check.fail("Attention", "dim", f"be a multiple of num_heads={num_heads}", dim)
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5 if scale is None else scale
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each [B, h, N, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0, scale=self.scale)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def attention_weights(self, x: Tensor) -> Tensor:
        """[B, h, N, N]: what `forward` weighs the values with."""
        q, k, _ = self.heads(x)
        return (q * self.scale @ k.transpose(-2, -1)).softmax(-1)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"
