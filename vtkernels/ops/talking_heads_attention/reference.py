"""Talking-heads attention as plain tensor algebra: the specification every backend is held to, forward and backward.

Any floating dtype; `attend` is differentiable by autograd. Letters: B batch, N tokens, C channels, h heads, D head
dimension; i a query, j a key, f and g heads.
"""

import torch
from einops import rearrange
from torch import Tensor

from vtkernels._core.op import Backend
from vtkernels._core.philox import keep_threshold, philox
from vtkernels.ops.talking_heads_attention.common import Call


def mix(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A Linear layer on the head axis of [B, h, N, N]."""
    x = torch.einsum("fg, Bgij -> Bfij", weight.to(x.dtype), x)
    return x if bias is None else x + bias.to(x.dtype)[:, None, None]


def keep_factor(call: Call) -> Tensor:
    """[B, h, N, N]: 0 for a dropped weight, 1 / (1 - p) for a kept one."""
    batch, heads, tokens, device = call.qkv.shape[0], call.num_heads, call.tokens, call.qkv.device
    item = torch.arange(batch * heads, device=device).view(batch, heads, 1, 1)
    element = torch.arange(tokens * tokens, device=device).view(tokens, tokens)
    words = philox(call.seed, *torch.broadcast_tensors(element, item & 0xFFFFFFFF, item >> 32, torch.zeros_like(item)))[0]
    return (words < keep_threshold(call.dropout_p)).to(call.qkv.dtype) / (1.0 - call.dropout_p)


def _rows(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v by image and head, q scaled: [B, h, N, D] each."""
    q, k, v = rearrange(call.qkv, "B N (three h D) -> three B h N D", three=3, h=call.num_heads)
    return q * call.scale, k, v


def attend(call: Call) -> Tensor:
    """The op: [B, N, 3C] -> [B, N, C]."""
    q, k, v = _rows(call)
    probabilities = mix(q @ k.mT, call.pre_weight, call.pre_bias).softmax(-1)
    weights = mix(probabilities, call.post_weight, call.post_bias)
    if call.dropout_p > 0:
        weights = weights * keep_factor(call)
    return rearrange(weights @ v, "B h N D -> B N (h D)")


def forward(call: Call) -> Tensor:
    return attend(call).contiguous()


def backward(call: Call, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of qkv, pre_weight, pre_bias, post_weight and post_bias; None for what the call does not have."""
    q, k, v = _rows(call)
    scores = q @ k.mT
    probabilities = mix(scores, call.pre_weight, call.pre_bias).softmax(-1)
    weights = mix(probabilities, call.post_weight, call.post_bias)
    d_o = rearrange(grad_out, "B N (h D) -> B h N D", h=call.num_heads)

    d_weights = d_o @ v.mT
    if call.dropout_p > 0:
        keep = keep_factor(call)
        weights, d_weights = weights * keep, d_weights * keep
    d_v = weights.mT @ d_o
    d_post_weight = torch.einsum("Bfij, Bgij -> fg", d_weights, probabilities)
    d_p = mix(d_weights, call.post_weight.mT)
    d_mixed = probabilities * (d_p - (probabilities * d_p).sum(-1, keepdim=True))
    d_pre_weight = torch.einsum("Bfij, Bgij -> fg", d_mixed, scores)
    d_s = mix(d_mixed, call.pre_weight.mT)
    d_q, d_k = d_s @ k * call.scale, d_s.mT @ q  # q carries the scale: d_k is complete, d_q lacks it

    d_qkv = rearrange(torch.stack((d_q, d_k, d_v)), "three B h N D -> B N (three h D)").contiguous()
    d_pre_bias = None if call.pre_bias is None else d_mixed.sum((0, 2, 3))
    d_post_bias = None if call.post_bias is None else d_weights.sum((0, 2, 3))
    return d_qkv, d_pre_weight, d_pre_bias, d_post_weight, d_post_bias


BACKEND = Backend("reference", lambda phase, call: None, {"forward": forward, "backward": backward})
