"""What every backend of class and pooled attention shares: the calls, and the shapes of what a forward saves."""

from typing import NamedTuple

import torch
from torch import Tensor

from vtkernels._core.philox import keep_threshold, philox


class Call(NamedTuple):
    """One call of class attention after validation, the same for the forward and the backward of every backend."""

    tokens: Tensor  # [B, T, C], the class token first
    q_weight: Tensor  # [C, C]
    k_weight: Tensor  # [C, C]
    v_weight: Tensor  # [C, C]
    q_bias: Tensor | None  # [C]
    k_bias: Tensor | None  # [C], which cancels in the softmax
    v_bias: Tensor | None  # [C]
    num_heads: int
    scale: float
    dropout_p: float
    seed: int

    @property
    def head_dim(self) -> int:
        return self.tokens.shape[2] // self.num_heads


class PooledCall(NamedTuple):
    """One call of pooled attention after validation."""

    q: Tensor  # [B, h, M, D]
    k: Tensor  # [B, h, N, D]
    v: Tensor  # [B, h, N, D]
    scale: float
    dropout_p: float
    seed: int


def saved_shapes(call: Call) -> tuple[tuple[int, ...], ...]:
    """Of what class attention's forward saves: probabilities, queries, directions, mixtures (README)."""
    batch, tokens, channels = call.tokens.shape
    per_head = (batch, call.num_heads, channels)
    return (batch, tokens, call.num_heads), (batch, channels), per_head, per_head


def statistics_shape(call: PooledCall) -> tuple[int, ...]:
    """Of what pooled attention's forward saves: [0] = m and [1] = 1 / l for each query, with P = exp(S - m) / l."""
    return (2, *call.q.shape[:3])


def wide_dtype(x: Tensor) -> torch.dtype:
    """What sums and everything saved are kept in."""
    return torch.promote_types(x.dtype, torch.float32)


def keep_factor(call: Call | PooledCall, batch: int, heads: int, queries: int, keys: int, like: Tensor) -> Tensor:
    """[B, h, M, N]: 0 for a dropped probability, 1 / (1 - p) for a kept one."""
    item = torch.arange(batch * heads, device=like.device).view(batch, heads, 1, 1)
    element = torch.arange(queries * keys, device=like.device).view(queries, keys)
    words = philox(call.seed, *torch.broadcast_tensors(element, item & 0xFFFFFFFF, item >> 32, torch.zeros_like(item)))[0]
    return (words < keep_threshold(call.dropout_p)).to(like.dtype) / (1.0 - call.dropout_p)
