"""Talking-heads attention on NVIDIA GPUs: the launchers of the Triton kernels. Triton itself is imported by the first call that runs."""

import functools
from typing import Any

import torch
from torch import Tensor

from vtkernels._core import gpu
from vtkernels._core.op import Backend
from vtkernels._core.philox import keep_threshold
from vtkernels.ops.talking_heads_attention.common import Call
from vtkernels.ops.talking_heads_attention.triton_tuning import Plan, tuned_plan

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_HEADS, _LARGEST_HEAD = 16, 128
# Rows of a program: what leaves all heads' accumulators in registers. Columns of a tile: eight for each of four warps.
_ROWS, _COLUMNS, _WARPS = 16, 32, 4


def why_not(phase: str, call: Call) -> str | None:
    qkv = call.qkv
    if not (qkv.device.type == "cuda" or qkv.device.type == "cpu" and gpu.interpreted()):
        return f"it runs on CUDA devices, qkv is on {qkv.device}"
    if qkv.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, qkv is {qkv.dtype}"
    if call.num_heads > _MOST_HEADS:
        return f"it mixes at most {_MOST_HEADS} heads, this call has {call.num_heads}"
    if call.head_dim > _LARGEST_HEAD:
        return f"its head dimensions are at most {_LARGEST_HEAD}, this call's is {call.head_dim}"
    if call.tokens * max(qkv.stride(1), 3 * call.channels) >= 2**31:
        return f"it addresses an image's tokens with 32 bits, this call's are spread over {call.tokens * qkv.stride(1)} elements"
    if qkv.device.type == "cuda":
        major, minor = capability = gpu.capability(qkv.device)
        if capability < (8, 0):
            return f"it needs compute capability 8.0 (Ampere) or newer, {qkv.device} has {major}.{minor}"
    return gpu.why_no_triton()


def forward(call: Call) -> Tensor:
    from vtkernels.ops.talking_heads_attention.triton_kernels import talking_heads_fwd_kernel as kernel

    qkv = gpu.dense_last(call.qkv)
    out = torch.empty((*qkv.shape[:2], call.channels), dtype=qkv.dtype, device=qkv.device)
    if not qkv.shape[0]:
        return out
    pre, post, bias = _parameters(call)
    with gpu.on(qkv.device):
        kernel[(_programs(call),)](
            qkv, pre, post, bias, out, call.tokens, *qkv.stride()[:2], *_scalars(call), **_constants(call, "forward"), POST_BIAS=call.post_bias is not None
        )
    return out


def backward(call: Call, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    from vtkernels.ops.talking_heads_attention import triton_kernels as kernels

    qkv, grad_out = gpu.dense_last(call.qkv), gpu.dense_last(grad_out)
    batch, heads, programs = qkv.shape[0], call.num_heads, _programs(call)
    new = functools.partial(torch.empty, dtype=torch.float32, device=qkv.device)
    d_qkv = new(qkv.shape, dtype=qkv.dtype)
    # the sums of each program, added below in a fixed order; a number added to all scores of a row changes no probability
    # heads whose mixing weights' gradients one program sums up: more would spill
    group = heads if heads <= 4 else 2 if heads % 2 == 0 else 1
    groups = heads // group
    d_post, d_pre = new(programs, groups, heads * group + heads), new(programs, heads, heads)
    if batch:
        statistics = new(3, batch, heads, call.tokens)
        pre, post, bias = _parameters(call)
        shape = batch, call.tokens, *qkv.stride()[:2], *grad_out.stride()[:2]
        scalars, constants = _scalars(call), _constants(call)
        with gpu.on(qkv.device):
            kernels.talking_heads_bwd_row_kernel[(programs * groups,)](qkv, grad_out, pre, post, statistics, d_post, *shape, *scalars, **constants, GROUP=group)
            for keys in (False, True):
                kernels.talking_heads_bwd_product_kernel[(programs,)](qkv, grad_out, pre, post, statistics, d_qkv, *shape, *scalars, **constants, KEYS=keys)
            kernels.talking_heads_bwd_mixing_kernel[(programs * groups,)](
                qkv, grad_out, pre, post, statistics, d_pre, *shape, *scalars, **constants, GROUP=group
            )
            kernels.talking_heads_bwd_value_kernel[(programs,)](
                qkv, grad_out, pre, post, bias, statistics, d_qkv, *shape, *scalars, **constants, POST_BIAS=call.post_bias is not None
            )
    d_post = d_post.sum(0)
    d_post_weight = d_post[:, : heads * group].view(groups, heads, group).transpose(0, 1).reshape(heads, heads)
    d_pre_bias = None if call.pre_bias is None else torch.zeros(heads, dtype=torch.float32, device=qkv.device)
    # every group of heads holds all of it
    d_post_bias = None if call.post_bias is None else d_post[0, heads * group :].contiguous()
    return d_qkv, d_pre.sum(0), d_pre_bias, d_post_weight, d_post_bias


def _programs(call: Call) -> int:
    return call.qkv.shape[0] * -(-call.tokens // _ROWS)


def _parameters(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """pre_weight, post_weight and post_bias, each dense; the kernels do not touch an absent bias."""
    pre, post = call.pre_weight.contiguous(), call.post_weight.contiguous()
    return pre, post, post if call.post_bias is None else call.post_bias.contiguous()


def _scalars(call: Call) -> tuple:
    return call.scale, call.seed, keep_threshold(call.dropout_p), 1.0 / (1.0 - call.dropout_p)


def _constants(call: Call, phase: str = "backward") -> dict[str, Any]:
    plan = tuned_plan(phase, call, Plan(_COLUMNS, _WARPS))
    return {
        "HEADS": call.num_heads,
        "HEAD_DIM": call.head_dim,
        "BLOCK_M": _ROWS,
        "BLOCK_N": plan.columns,
        "BLOCK_D": gpu.tile_edge(call.head_dim),
        "DROPOUT": call.dropout_p > 0,
        "PRECISION": gpu.product_precision(call.qkv),
        "num_warps": plan.num_warps,
        "num_stages": 1,
        # Triton is about to switch the contraction of multiply and add off by default
        "enable_fp_fusion": True,
    }


BACKEND = Backend("triton", why_not, {"forward": forward, "backward": backward})
