"""CaiT's attention module: projection, talking-heads attention, projection, under the parameter names of timm."""

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.ops.talking_heads_attention.op import talking_heads_attention


class TalkingHeadsAttention(nn.Module):
    """Talking-heads attention on tokens: [B, N, C] -> [B, N, C].

    Parameters are named, shaped and ordered as in timm's `TalkingHeadAttn` and in the published CaiT: `qkv`, `proj`, `proj_l`
    (mixes scores), `proj_w` (mixes probabilities). State dicts go either way.

    Args:
        dim: channels C.
        num_heads: heads; `dim` must be a multiple of it.
        qkv_bias: whether the first projection has a bias.
        qk_scale: multiplies the scores; default (also for 0, as in the published model) head_dim ** -0.5.
        attn_drop: probability of dropping an attention weight in training.
        proj_drop: dropout after the second projection.
        backend: as in `vtkernels.talking_heads_attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            check.fail("TalkingHeadsAttention", "dim", f"be a multiple of num_heads={num_heads}", dim, "CaiT uses 48 channels a head")
        factory = {"device": device, "dtype": dtype}
        self.dim, self.num_heads, self.attn_drop, self.backend = dim, num_heads, attn_drop, backend
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.proj = nn.Linear(dim, dim, **factory)
        self.proj_l = nn.Linear(num_heads, num_heads, **factory)
        self.proj_w = nn.Linear(num_heads, num_heads, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        x = talking_heads_attention(
            self.qkv(x),
            self.proj_l.weight,
            self.proj_l.bias,
            self.proj_w.weight,
            self.proj_w.bias,
            num_heads=self.num_heads,
            scale=self.scale,
            dropout_p=self.attn_drop if self.training else 0.0,
            backend=self.backend,
        )
        return self.proj_drop(self.proj(x))

    def attention_weights(self, x: Tensor) -> Tensor:
        """[B, h, N, N]: what `forward` weighs the values with, after both mixings."""
        q, k, _ = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q * self.scale @ k.transpose(-2, -1)
        # [B, N, N, h]: the mixings are Linear layers on the axis of heads
        probabilities = self.proj_l(scores.permute(0, 2, 3, 1)).softmax(-2)
        return self.proj_w(probabilities).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.dim}, num_heads={self.num_heads}, attn_drop={self.attn_drop}"
