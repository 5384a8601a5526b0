"""Class and pooled attention as plain tensor algebra: the specification every backend is held to, forward and backward.

Any floating dtype; `attend` and `pool` are differentiable by autograd. Letters: B batch, T tokens, the class token among
them, C channels, h heads, D head dimension, M queries, N keys.
"""

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core.op import Backend
from vtkernels.ops.class_attention.common import Call, PooledCall, keep_factor, wide_dtype


def _keep(call: Call, like: Tensor) -> Tensor | None:
    """[B, h, 1, T], or None without dropout."""
    batch, tokens, _ = call.tokens.shape
    return keep_factor(call, batch, call.num_heads, 1, tokens, like) if call.dropout_p > 0 else None


def _in_dtype(call: Call, dtype: torch.dtype) -> Call:
    return call._replace(**{name: value.to(dtype) for name, value in call._asdict().items() if isinstance(value, Tensor)})


def _detached(call: Call) -> Call:
    """Torch's matmul takes another path, and rounds otherwise, for tensors that require gradients."""
    return call._replace(**{name: value.detach() for name, value in call._asdict().items() if isinstance(value, Tensor)})


def _project(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q [B, h, 1, D] as it enters the product (scaled), k and v [B, h, T, D], and the probabilities [B, h, 1, T]."""
    call = _in_dtype(call, call.tokens.dtype)
    q = F.linear(call.tokens[:, :1], call.q_weight, call.q_bias)
    k, v = F.linear(call.tokens, call.k_weight, call.k_bias), F.linear(call.tokens, call.v_weight, call.v_bias)
    q, k, v = (rearrange(x, "B T (h D) -> B h T D", h=call.num_heads) for x in (q, k, v))
    q = q * call.scale
    return q, k, v, (q @ k.mT).softmax(-1)


def attend(call: Call) -> Tensor:
    """The op as CaiT states it, keys and values formed: [B, T, C] -> [B, C]."""
    _, _, v, probabilities = _project(call)
    keep = _keep(call, v)
    return rearrange((probabilities if keep is None else probabilities * keep) @ v, "B h 1 D -> B (h D)")


def fold(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is saved, by the folded form: probabilities [B, T, h], queries [B, C], directions and mixtures [B, h, C]."""
    # rounded once, at the end: the errors of these would add to those of a backend that takes them up
    wide, call = wide_dtype(call.tokens), _in_dtype(call, torch.float64)
    queries = F.linear(call.tokens[:, 0], call.q_weight, call.q_bias)
    scaled, key_rows = rearrange(queries * call.scale, "B (h D) -> B h D", h=call.num_heads), rearrange(call.k_weight, "(h D) C -> h D C", h=call.num_heads)
    directions = einsum(scaled, key_rows, "B h D, h D C -> B h C")
    probabilities = einsum(call.tokens, directions, "B T C, B h C -> B h T").softmax(-1)
    keep = _keep(call, probabilities)
    mixtures = (probabilities if keep is None else probabilities * keep[:, :, 0]) @ call.tokens
    return tuple(x.to(wide).contiguous() for x in (probabilities.mT, queries, directions, mixtures))


def forward(call: Call) -> tuple[Tensor, ...]:
    call = _detached(call)
    return attend(call).contiguous(), *fold(call)


def backward(call: Call, grad_out: Tensor, *saved: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of tokens, the three weights and the three biases; None for a bias the call does not have."""
    call = _detached(call)
    q, k, v, probabilities = _project(call)
    keep = _keep(call, v)
    d_o = rearrange(grad_out, "B (h D) -> B h 1 D", h=call.num_heads)

    d_v = (probabilities if keep is None else probabilities * keep).mT @ d_o
    d_p = d_o @ v.mT
    if keep is not None:
        d_p = d_p * keep
    d_s = probabilities * (d_p - (probabilities * d_p).sum(-1, keepdim=True))
    d_q, d_k = d_s @ k * call.scale, d_s.mT @ q
    d_q, d_k, d_v = (rearrange(x, "B h T D -> B T (h D)") for x in (d_q, d_k, d_v))

    x = call.tokens
    weights = (weight.to(x.dtype) for weight in (call.q_weight, call.k_weight, call.v_weight))
    through_q, through_k, through_v = (d @ weight for d, weight in zip((d_q, d_k, d_v), weights, strict=True))
    d_tokens = through_k + through_v + F.pad(through_q, (0, 0, 0, x.shape[1] - 1))
    d_weights = [d.flatten(0, 1).mT @ of.flatten(0, 1) for d, of in ((d_q, x[:, :1]), (d_k, x), (d_v, x))]
    # the scores of a row all move alike with k_bias: what the softmax does not see has no gradient
    d_biases = d_q.sum((0, 1)), d_q.new_zeros(d_q.shape[-1]), d_v.sum((0, 1))
    return d_tokens, *d_weights, *(None if bias is None else d for bias, d in zip(call[4:7], d_biases, strict=True))


def _pooled_keep(call: PooledCall) -> Tensor | None:
    return keep_factor(call, *call.q.shape[:3], call.k.shape[2], call.q) if call.dropout_p > 0 else None


def pool(call: PooledCall) -> Tensor:
    """[B, h, M, D] queries over [B, h, N, D] keys and values -> [B, h, M, D]."""
    probabilities = (call.q * call.scale @ call.k.mT).softmax(-1)
    keep = _pooled_keep(call)
    return (probabilities if keep is None else probabilities * keep) @ call.v


def pooled_forward(call: PooledCall) -> tuple[Tensor, Tensor]:
    wide = wide_dtype(call.q)
    scores = call.q.to(wide) * call.scale @ call.k.to(wide).mT
    largest = scores.amax(-1)
    return pool(call).contiguous(), torch.stack((largest, 1.0 / (scores - largest[..., None]).exp().sum(-1)))


def pooled_backward(call: PooledCall, grad_out: Tensor, out: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    q = call.q * call.scale
    probabilities = (q @ call.k.mT).softmax(-1)
    keep = _pooled_keep(call)
    d_v = (probabilities if keep is None else probabilities * keep).mT @ grad_out
    d_p = grad_out @ call.v.mT
    if keep is not None:
        d_p = d_p * keep
    d_s = probabilities * (d_p - (probabilities * d_p).sum(-1, keepdim=True))
    return tuple(x.contiguous() for x in (d_s @ call.k * call.scale, d_s.mT @ q, d_v))


CLASS = Backend("reference", lambda phase, call: None, {"forward": forward, "backward": backward})
POOLED = Backend("reference", lambda phase, call: None, {"forward": pooled_forward, "backward": pooled_backward})
