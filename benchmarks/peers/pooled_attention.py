"""The other ways to let a few queries attend to many keys: (q, k, v) -> out, all [B, h, rows, D]."""

from collections.abc import Callable

from peers.window_attention import _compiled
from torch import Tensor
from torch.nn import functional as F

Peer = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """timm 1.0's AttentionPoolLatent, fused_attn off."""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same, fused_attn on."""
    return F.scaled_dot_product_attention(q, k, v)


def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlexAttention without a score function."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(q, k, v)


PEERS: dict[str, Callable[[str], Peer]] = {
    "eager": lambda device: eager,
    "sdpa": lambda device: sdpa,
    "flex": lambda device: _compiled(flex, device),
    "inductor": lambda device: _compiled(eager, device),
}
