"""CaiT's class attention as a module: projections, attention of the class token, projection, under timm's parameter names."""

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.ops.class_attention.op import class_attention


class ClassAttention(nn.Module):
    """CaiT's class attention: [B, 1 + N, C], the class token first -> [B, 1, C].

    Parameters are named, shaped and ordered as in timm's `ClassAttn` and the official model: `q`, `k`, `v`, `proj`.

    Args:
        dim: channels C.
        num_heads: heads; `dim` must be a multiple of it.
        qkv_bias: whether the first three projections have biases.
        attn_drop: probability of dropping an attention weight in training.
        proj_drop: dropout after the output projection.
        qk_scale: multiplies the scores; default (also for 0, as in the official model) head_dim ** -0.5.
        backend: as in `vtkernels.class_attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        qk_scale: float | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            check.fail("ClassAttention", "dim", f"be a multiple of num_heads={num_heads}", dim, "CaiT uses 48 channels a head")
        factory = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.backend = backend
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=qkv_bias, **factory) for _ in range(3))
        self.proj = nn.Linear(dim, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q, self.k, self.v
        out = class_attention(
            x, q.weight, k.weight, v.weight, q.bias, k.bias, v.bias,
            num_heads=self.num_heads, scale=self.scale, dropout_p=self.attn_drop if self.training else 0.0, backend=self.backend,
        )  # fmt: skip
        return self.proj_drop(self.proj(out[:, None]))

    def attention_weights(self, x: Tensor) -> Tensor:
        """[B, h, 1, 1 + N]: what `forward` weighs the class token's own value and those of the patches with."""
        q = self.q(x[:, :1]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k = self.k(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return (q * self.scale @ k.transpose(-2, -1)).softmax(-1)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, attn_drop={self.attn_drop}"
