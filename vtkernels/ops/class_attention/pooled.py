"""Pooled attention: a few queries over many keys and values that are there already."""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels._core.op import Op, define, differentiable, differentiable_again
from vtkernels._core.philox import draw_seed
from vtkernels.ops.class_attention import reference
from vtkernels.ops.class_attention.common import PooledCall, statistics_shape, wide_dtype
from vtkernels.ops.class_attention.op import autocast

_HERE = "vtkernels.ops.class_attention"
OP = Op("pooled_attention", {"triton": f"{_HERE}.triton:POOLED", "cpu": f"{_HERE}.native:POOLED", "reference": f"{_HERE}.reference:POOLED"})


def pooled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of a few queries over many keys: softmax(scale * q k^T) v, forward and backward fused.

    For attention pooling (one learned query), SigLIP's head, DeiT's class and distillation tokens (two queries) and the like. Right
    for any number of queries; made for up to a dozen. Gradients reach `q`, `k` and `v`, and are bitwise repeatable.

    Args:
        q: [B, heads, M, D], M queries; any strides. A query that all images share may be expanded.
        k, v: [B, heads, N, D]; any strides, so a permuted [B, N, heads, D] is as good.
        scale: multiplies the scores; default D ** -0.5.
        dropout_p: probability of dropping an attention weight.
        seed: of the dropout; the same seed drops the same weights on every backend. Default: drawn from torch.
        backend: auto, triton, cpu or reference.

    Returns:
        [B, heads, M, D]
    """
    return torch.ops.vtkernels.pooled_attention.default(*_prepare(q, k, v, scale, dropout_p, seed, backend))[0]


def _prepare(q, k, v, scale, dropout_p, seed, backend) -> tuple[Any, ...]:
    name = OP.name
    q, k, v = autocast(q), autocast(k), autocast(v)
    for argument, value, layout in (("q", q, "[B, heads, M, D]"), ("k", k, "[B, heads, N, D]"), ("v", v, "[B, heads, N, D]")):
        check.check_tensor(name, argument, value, 4, layout)
        check.check_floating(name, argument, value)
        if value.dtype != q.dtype:
            check.fail(name, argument, f"have q's dtype {q.dtype}", value.dtype, f"try {argument}.to(q.dtype)", TypeError)
        if value.device != q.device:
            check.fail(name, argument, f"be on the device of q ({q.device})", value.device, f"try {argument}.to(q.device)")
    batch, heads, queries, dim = q.shape
    if heads < 1 or queries < 1 or dim < 1:
        check.fail(name, "q", "have at least one head, one query and one channel", list(q.shape), "only the batch may be empty")
    keys = k.shape[2]
    if keys < 1:
        check.fail(name, "k", "have at least one key", list(k.shape), "a softmax over nothing has no value")
    for argument, value in (("k", k), ("v", v)):
        check.check_shape(name, argument, value, (batch, heads, keys, dim), "batch, heads and D are q's, the number of keys is k's")
    check.check_dropout(name, dropout_p)
    check.check_seed(name, seed)
    OP.check_name(backend)
    scale = dim**-0.5 if scale is None else check.check_number(name, "scale", scale, "None stands for D ** -0.5")
    if seed is None:
        seed = draw_seed() if dropout_p > 0 else 0
    return q, k, v, scale, float(dropout_p), seed, backend


_COMMON = "Tensor q, Tensor k, Tensor v, float scale, float dropout_p, SymInt seed"


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    call = PooledCall(*args[:-1])
    return OP.select("forward", args[-1], call)(call)


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    call = PooledCall(*args[:-1])
    return call.q.new_empty(call.q.shape), call.q.new_empty(statistics_shape(call), dtype=wide_dtype(call.q))


def _backward(grad_out: Tensor, out: Tensor, statistics: Tensor, *args: Any) -> tuple[Tensor, ...]:
    call = PooledCall(*args[:-1])
    return OP.select("backward", args[-1], call)(call, grad_out, out, statistics)


def _backward_fake(grad_out: Tensor, out: Tensor, statistics: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in args[:3])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.scalars = inputs[3:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * len(ctx.scalars)
    if grad_out is None:
        return None, None, None, *nothing
    q, k, v, out, statistics = ctx.saved_tensors
    return *torch.ops.vtkernels.pooled_attention_backward.default(grad_out, out, statistics, q, k, v, *ctx.scalars), *nothing


define(f"pooled_attention({_COMMON}, str backend) -> (Tensor, Tensor)", _forward, _forward_fake)
define(
    f"pooled_attention_backward(Tensor grad_out, Tensor out, Tensor statistics, {_COMMON}, str backend) -> (Tensor, Tensor, Tensor)", _backward, _backward_fake
)
differentiable("pooled_attention", _save, _differentiate)
differentiable_again("pooled_attention_backward", 3, lambda *args: reference.pool(PooledCall(*args[:-1])))


def _example(device: torch.device) -> dict[str, Any]:
    """One learned query over the patches of one image."""
    return {name: torch.zeros(1, 12, rows, 64, device=device) for name, rows in (("q", 1), ("k", 196), ("v", 196))}


OP.explains(pooled_attention, lambda **arguments: PooledCall(*_prepare(**arguments | {"seed": arguments["seed"] or 0})[:-1]), _example)
