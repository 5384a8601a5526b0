"""Class and pooled attention on the CPU: the C++ kernels of csrc/class_attention."""

import torch
from torch import Tensor

from vtkernels._core import native
from vtkernels._core.op import Backend
from vtkernels.ops.class_attention.common import Call, PooledCall, saved_shapes, statistics_shape

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _why_not(name: str, x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"it runs on the CPU, {name} is on {x.device}"
    if x.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, {name} is {x.dtype}"
    return native.why_missing()


def why_not(phase: str, call: Call) -> str | None:
    return _why_not("tokens", call.tokens)


def why_not_pooled(phase: str, call: PooledCall) -> str | None:
    return _why_not("q", call.q)


def forward(call: Call) -> tuple[Tensor, ...]:
    tokens = _dense_last(call.tokens)
    out = native.empty((tokens.shape[0], tokens.shape[2]), tokens.dtype)
    saved = [native.empty(shape) for shape in saved_shapes(call)]
    biases = _floats(call.q_bias), _floats(call.v_bias)
    torch.ops.vtkernels_native.class_attention_forward.default(tokens, *_weights(call), *biases, *_scalars(call), out, *saved)
    return out, *saved


def backward(call: Call, grad_out: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    tokens, channels = _dense_last(call.tokens), call.tokens.shape[2]
    d_tokens = native.empty(tokens.shape, tokens.dtype)
    d_weights = [native.empty((channels, channels), weight.dtype) for weight in call[1:4]]
    d_q_bias, d_v_bias = native.empty(channels), native.empty(channels)
    torch.ops.vtkernels_native.class_attention_backward.default(
        _dense_last(grad_out), *saved, tokens, *_weights(call), _floats(call.v_bias), *_scalars(call), d_tokens, *d_weights, d_q_bias, d_v_bias
    )
    return d_tokens, *d_weights, d_q_bias, native.zeros(channels), d_v_bias


def pooled_forward(call: PooledCall) -> tuple[Tensor, Tensor]:
    out, statistics = native.empty(call.q.shape, call.q.dtype), native.empty(statistics_shape(call))
    torch.ops.vtkernels_native.pooled_attention_forward.default(*map(_dense_last, call[:3]), *call[3:], out, statistics)
    return out, statistics


def pooled_backward(call: PooledCall, grad_out: Tensor, out: Tensor, statistics: Tensor) -> tuple[Tensor, ...]:
    grads = [native.empty(x.shape, x.dtype) for x in call[:3]]
    torch.ops.vtkernels_native.pooled_attention_backward.default(_dense_last(grad_out), *map(_dense_last, call[:3]), *call[3:], *grads)
    return tuple(grads)


def _dense_last(x: Tensor) -> Tensor:
    # clone, not contiguous(): that leaves an empty tensor's strides as they are
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


def _weights(call: Call) -> tuple[Tensor, ...]:
    return call.q_weight.contiguous(), call.k_weight.contiguous(), call.v_weight.contiguous()


def _floats(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def _scalars(call: Call) -> tuple:
    return call.num_heads, call.scale, call.dropout_p, call.seed


CLASS = Backend("cpu", why_not, {"forward": forward, "backward": backward})
POOLED = Backend("cpu", why_not_pooled, {"forward": pooled_forward, "backward": pooled_backward})
