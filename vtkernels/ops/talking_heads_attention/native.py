"""Talking-heads attention on the CPU: the C++ kernels of csrc/talking_heads_attention."""

import torch
from torch import Tensor

from vtkernels._core import native
from vtkernels._core.op import Backend
from vtkernels.ops.talking_heads_attention.common import Call

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_HEADS, _LARGEST_HEAD = 32, 256


def why_not(phase: str, call: Call) -> str | None:
    if call.qkv.device.type != "cpu":
        return f"it runs on the CPU, qkv is on {call.qkv.device}"
    if call.qkv.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, qkv is {call.qkv.dtype}"
    if call.num_heads > _MOST_HEADS:
        return f"it mixes at most {_MOST_HEADS} heads, this call has {call.num_heads}"
    if call.head_dim > _LARGEST_HEAD:
        return f"its head dimensions are at most {_LARGEST_HEAD}, this call's is {call.head_dim}"
    return native.why_missing()


def forward(call: Call) -> Tensor:
    qkv = _dense_last(call.qkv)
    out = native.empty((*qkv.shape[:2], call.channels), qkv.dtype)
    torch.ops.vtkernels_native.talking_heads_attention_forward.default(qkv, *_parameters(call), *_scalars(call), out)
    return out


def backward(call: Call, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    qkv, parameters = _dense_last(call.qkv), _parameters(call)
    d_qkv = native.empty(qkv.shape, qkv.dtype)
    d_pre_weight, d_post_weight, d_post_bias = (native.empty(shape) for shape in (call.pre_weight.shape, call.post_weight.shape, call.num_heads))
    torch.ops.vtkernels_native.talking_heads_attention_backward.default(
        _dense_last(grad_out), qkv, *parameters, *_scalars(call), d_qkv, d_pre_weight, d_post_weight, d_post_bias
    )
    # a number added to all scores of a row changes no probability
    d_pre_bias = None if call.pre_bias is None else native.zeros(call.pre_bias.shape)
    return d_qkv, d_pre_weight, d_pre_bias, d_post_weight, None if call.post_bias is None else d_post_bias


def _dense_last(x: Tensor) -> Tensor:
    # clone, not contiguous(): that leaves an empty tensor's strides as they are
    return x if x.stride(2) == 1 else x.clone(memory_format=torch.contiguous_format)


def _parameters(call: Call) -> tuple[Tensor | None, ...]:
    """pre_weight, post_weight and post_bias; the softmax cancels pre_bias."""
    return tuple(None if value is None else value.float().contiguous() for value in (call.pre_weight, call.post_weight, call.post_bias))


def _scalars(call: Call) -> tuple:
    return (call.num_heads, call.scale, call.dropout_p, call.seed)


BACKEND = Backend("cpu", why_not, {"forward": forward, "backward": backward})
