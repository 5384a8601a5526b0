"""Class and pooled attention on NVIDIA GPUs: the launchers of the Triton kernels. Triton itself is imported by the first call that runs.

Class attention's products with weights have as many rows as there are images; they are left to torch, in float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtkernels._core import gpu, tuned
from vtkernels._core.op import Backend
from vtkernels._core.philox import keep_threshold
from vtkernels.ops.class_attention.common import Call, PooledCall, saved_shapes, statistics_shape

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_HEADS = 64
_LARGEST_HEAD = 256
# of the softmax
_BLOCK_T = 64
# of pooled attention: queries are few, and tensor cores take no fewer than 16 rows
_BLOCK_M = 16


class Plan(NamedTuple):
    """How the kernels that read the tokens are launched, `rows` of them at once; and pooled attention's, with so many keys."""

    rows: int
    num_warps: int
    num_stages: int


def _why_not(name: str, x: Tensor) -> str | None:
    if not (x.device.type == "cuda" or x.device.type == "cpu" and gpu.interpreted()):
        return f"it runs on CUDA devices, {name} is on {x.device}"
    if x.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, {name} is {x.dtype}"
    if x.device.type == "cuda":
        major, minor = capability = gpu.capability(x.device)
        if capability < (7, 5):
            return f"it needs compute capability 7.5 (Turing) or newer, {x.device} has {major}.{minor}"
        if x.dtype == torch.bfloat16 and capability < (8, 0):
            return f"bfloat16 needs compute capability 8.0 (Ampere) or newer, {x.device} has {major}.{minor}; float16 runs"
    return gpu.why_no_triton()


def why_not(phase: str, call: Call) -> str | None:
    if call.num_heads > _MOST_HEADS:
        return f"it takes at most {_MOST_HEADS} heads, this call has {call.num_heads}"
    return _why_not("tokens", call.tokens)


def why_not_pooled(phase: str, call: PooledCall) -> str | None:
    if call.q.shape[3] > _LARGEST_HEAD:
        return f"its head dimensions are at most {_LARGEST_HEAD}, this call's is {call.q.shape[3]}"
    return _why_not("q", call.q)


def forward(call: Call) -> tuple[Tensor, ...]:
    from vtkernels.ops.class_attention import triton_class as kernels

    tokens, heads = gpu.dense_last(call.tokens), call.num_heads
    device, (batch, count, channels) = tokens.device, tokens.shape
    probabilities, queries, directions, mixtures = (torch.empty(shape, dtype=torch.float32, device=device) for shape in saved_shapes(call))
    if not batch:
        return tokens.new_empty((0, channels)), probabilities, queries, directions, mixtures
    torch.matmul(tokens[:, 0].float(), call.q_weight.float().T, out=queries)
    if call.q_bias is not None:
        queries += call.q_bias
    directions.copy_(_per_head(queries * call.scale, call.k_weight, heads))
    kept, kept_sums = probabilities, probabilities
    if call.dropout_p > 0:
        kept, kept_sums = torch.empty_like(probabilities), torch.empty(batch, heads, dtype=torch.float32, device=device)
    plan = _plan("forward", call)
    constants, strides, options = _constants(call, plan), tokens.stride()[:2], _options(plan)
    blocks, column_blocks = -(-count // plan.rows), -(-channels // _block_c(channels))
    with gpu.on(device):
        kernels.class_attention_scores_kernel[(batch * blocks,)](tokens, directions, probabilities, count, blocks, *strides, **constants, **options)
        kernels.class_attention_softmax_fwd_kernel[(batch,)](probabilities, kept, kept_sums, count, *_dropout(call), **_softmax_constants(call))
        kernels.class_attention_mix_kernel[(batch * column_blocks,)](tokens, kept, mixtures, count, *strides, **constants, **options)
    out = _through_heads(mixtures, call.v_weight, heads)
    if call.v_bias is not None:
        v_bias = call.v_bias.float().unflatten(0, (heads, -1))
        # probabilities sum to one, but for dropout
        out = out + (kept_sums[..., None] * v_bias if call.dropout_p > 0 else v_bias)
    return out.flatten(1).to(tokens.dtype), probabilities, queries, directions, mixtures


def backward(call: Call, grad_out: Tensor, probabilities: Tensor, queries: Tensor, directions: Tensor, mixtures: Tensor) -> tuple[Tensor, ...]:
    from vtkernels.ops.class_attention import triton_class as kernels

    tokens, heads = gpu.dense_last(call.tokens), call.num_heads
    device, (batch, count, channels) = tokens.device, tokens.shape
    d_tokens = torch.empty(tokens.shape, dtype=tokens.dtype, device=device)
    if not batch:
        shapes = [(channels, channels)] * 3 + [(channels,)] * 3
        return d_tokens, *(torch.zeros(shape, dtype=torch.float32, device=device) for shape in shapes)
    grad = grad_out.float().unflatten(1, (heads, -1))
    d_mixtures = _per_head(grad_out.float(), call.v_weight, heads).contiguous()
    d_class = torch.empty(batch, channels, dtype=torch.float32, device=device)
    d_scores, d_directions = torch.empty_like(probabilities), torch.empty_like(directions)
    kept, kept_sums, constant = probabilities, probabilities, probabilities
    if call.dropout_p > 0:
        kept, kept_sums = torch.empty_like(probabilities), torch.empty(batch, heads, dtype=torch.float32, device=device)
        # probabilities no longer sum to one: the value bias does not cancel
        constant = kept_sums.new_zeros(batch, heads) if call.v_bias is None else (grad * call.v_bias.float().unflatten(0, (heads, -1))).sum(-1)
    plan = _plan("backward", call)
    constants, strides, options = _constants(call, plan), tokens.stride()[:2], _options(plan)
    blocks, column_blocks = -(-count // plan.rows), -(-channels // _block_c(channels))
    with gpu.on(device):
        kernels.class_attention_scores_kernel[(batch * blocks,)](tokens, d_mixtures, d_scores, count, blocks, *strides, **constants, **options)
        kernels.class_attention_softmax_bwd_kernel[(batch,)](
            probabilities, d_scores, kept, kept_sums, constant, count, *_dropout(call), **_softmax_constants(call)
        )
        kernels.class_attention_mix_kernel[(batch * column_blocks,)](tokens, d_scores, d_directions, count, *strides, **constants, **options)
        kernels.class_attention_tokens_bwd_kernel[(batch * blocks,)](
            d_tokens, d_class, kept, d_scores, directions, d_mixtures, count, blocks, **constants, **_options(plan._replace(num_stages=1))
        )
    d_queries = call.scale * _through_heads(d_directions, call.k_weight, heads).flatten(1)
    d_q_weight = d_queries.T @ tokens[:, 0].float()
    d_k_weight = call.scale * torch.einsum("bhd,bhc->hdc", queries.unflatten(1, (heads, -1)), d_directions).flatten(0, 1)
    d_v_weight = torch.einsum("bhd,bhc->hdc", grad, mixtures).flatten(0, 1)
    d_v_bias = (grad * kept_sums[..., None] if call.dropout_p > 0 else grad).sum(0).flatten()
    d_tokens[:, 0] = torch.addmm(d_class, d_queries, call.q_weight.float())
    return d_tokens, d_q_weight, d_k_weight, d_v_weight, d_queries.sum(0), torch.zeros_like(d_v_bias), d_v_bias


def pooled_forward(call: PooledCall) -> tuple[Tensor, Tensor]:
    from vtkernels.ops.class_attention.triton_pooled import pooled_attention_fwd_kernel as kernel

    q, k, v = map(gpu.dense_last, call[:3])
    out, statistics = torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(statistics_shape(call), dtype=torch.float32, device=q.device)
    tiles, items = -(-q.shape[2] // _BLOCK_M), q.shape[0] * q.shape[1]
    if items:
        options = _pooled_options(call, _pooled_plan("forward", call))
        with gpu.on(q.device):
            kernel[(items * tiles,)](q, k, v, out, statistics, *_pooled_scalars(call, tiles), *_strides(q, k, v), **options)
    return out, statistics


def pooled_backward(call: PooledCall, grad_out: Tensor, out: Tensor, statistics: Tensor) -> tuple[Tensor, ...]:
    from vtkernels.ops.class_attention import triton_pooled as kernels

    q, k, v, grad_out = map(gpu.dense_last, (*call[:3], grad_out))
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    items = q.shape[0] * q.shape[1]
    if items:
        plan = _pooled_plan("backward", call)
        query_tiles, key_tiles = -(-q.shape[2] // _BLOCK_M), -(-k.shape[2] // plan.rows)
        inputs, strides, options = (q, k, v, grad_out, out, statistics), _strides(q, k, v, grad_out), _pooled_options(call, plan)
        with gpu.on(q.device):
            kernels.pooled_attention_bwd_query_kernel[(items * query_tiles,)](*inputs, grads[0], *_pooled_scalars(call, query_tiles), *strides, **options)
            kernels.pooled_attention_bwd_key_kernel[(items * key_tiles,)](*inputs, *grads[1:], *_pooled_scalars(call, key_tiles), *strides, **options)
    if k.shape[2] == 1:
        # the softmax of one score is constant; sums rounded in different orders would leave a trace of it
        grads[0].zero_()
        grads[1].zero_()
    return tuple(grads)


def _per_head(rows: Tensor, weight: Tensor, heads: int) -> Tensor:
    """[B, C] rows, of each head its D channels, times that head's D rows of the weight: [B, h, C]."""
    return torch.einsum("bhd,hdc->bhc", rows.unflatten(1, (heads, -1)), weight.float().unflatten(0, (heads, -1)))


def _through_heads(rows: Tensor, weight: Tensor, heads: int) -> Tensor:
    """[B, h, C] rows through that head's D rows of the weight: [B, h, D]."""
    return torch.einsum("bhc,hdc->bhd", rows, weight.float().unflatten(0, (heads, -1)))


def _dropout(call: Call | PooledCall) -> tuple:
    return call.seed, keep_threshold(call.dropout_p), 1.0 / (1.0 - call.dropout_p)


def _constants(call: Call, plan: Plan) -> dict[str, Any]:
    channels = call.tokens.shape[2]
    return {
        "HEADS": call.num_heads,
        "CHANNELS": channels,
        "BLOCK_T": plan.rows,
        "BLOCK_C": _block_c(channels),
        "BLOCK_H": gpu.tile_edge(call.num_heads),
        "PRECISION": gpu.product_precision(call.tokens),
    }


def _softmax_constants(call: Call) -> dict[str, Any]:
    constants = {"HEADS": call.num_heads, "BLOCK_T": _BLOCK_T, "BLOCK_H": gpu.tile_edge(call.num_heads), "DROPOUT": call.dropout_p > 0}
    return {**constants, "num_warps": 4, "enable_fp_fusion": True}


def _plan(phase: str, call: Call) -> Plan:
    batch, count, channels = call.tokens.shape
    key = {"bits": str(8 * call.tokens.dtype.itemsize), "tile": f"{_block_c(channels)}x{gpu.tile_edge(call.num_heads)}"}
    key |= {"images": batch, "tokens": count, "channels": channels}
    return tuned.lookup("class_attention", f"class_{phase}", key, Plan(64, 4, 2), _candidates, call.tokens.device)


def _candidates(plan: Plan) -> list[Plan]:
    return [Plan(rows, warps, stages) for rows in (32, 64, 128) for warps in (4, 8) for stages in (1, 2, 3)]


def _options(plan: Plan) -> dict[str, Any]:
    # Triton is about to switch the contraction of multiply and add off by default
    return {"STAGES": plan.num_stages, "num_warps": plan.num_warps, "num_stages": plan.num_stages, "enable_fp_fusion": True}


def _block_c(channels: int) -> int:
    """Channels of a tile: as many as divide all of them, so that loads need no mask along a row."""
    return next((block for block in (64, 32) if channels % block == 0), 64 if channels > 32 else 32)


def _pooled_scalars(call: PooledCall, tiles: int) -> tuple:
    batch, heads, queries, _ = call.q.shape
    return heads, queries, call.k.shape[2], tiles, batch * heads, call.scale, *_dropout(call)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def _block_n(call: PooledCall) -> int:
    """Keys of a tile: of wide heads, and where a product is three, fewer fit the registers."""
    half, dim = call.q.dtype != torch.float32, call.q.shape[3]
    return 64 if half and dim <= 64 else 32 if half or dim <= 64 else 16


def _pooled_plan(phase: str, call: PooledCall) -> Plan:
    batch, heads, queries, dim = call.q.shape
    key = {"bits": str(8 * call.q.dtype.itemsize), "head_dim": str(dim), "items": batch * heads, "queries": queries, "keys": call.k.shape[2]}
    default = Plan(_block_n(call), 4, 2 if dim <= 64 else 1)
    return tuned.lookup("class_attention", f"pooled_{phase}", key, default, _pooled_candidates, call.q.device)


def _pooled_candidates(plan: Plan) -> list[Plan]:
    return [Plan(rows, warps, stages) for rows in (16, 32, 64, 128) for warps in (1, 2, 4) for stages in (1, 2, 3)]


def _pooled_options(call: PooledCall, plan: Plan) -> dict[str, Any]:
    dim = call.q.shape[3]
    constants = {"DIM": dim, "BLOCK_D": gpu.tile_edge(dim), "BLOCK_M": _BLOCK_M, "BLOCK_N": plan.rows, "DROPOUT": call.dropout_p > 0}
    return {**constants, "PRECISION": gpu.product_precision(call.q), **_options(plan)}


CLASS = Backend("triton", why_not, {"forward": forward, "backward": backward})
POOLED = Backend("triton", why_not_pooled, {"forward": pooled_forward, "backward": pooled_backward})
