"""Window attention on the CPU: the C++ kernels of csrc/window_attention."""

import torch
from torch import Tensor

from vtkernels._core import native
from vtkernels._core.op import Backend
from vtkernels.ops.window_attention.common import Call, statistics_shape

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(phase: str, call: Call) -> str | None:
    if call.qkv.device.type != "cpu":
        return f"it runs on the CPU, qkv is on {call.qkv.device}"
    if call.qkv.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, qkv is {call.qkv.dtype}"
    if call.head_dim % 8 or not 8 <= call.head_dim <= 256:
        return f"its head dimensions are 8 to 256 in steps of 8, this call's is {call.head_dim}"
    return native.why_missing()


def forward(call: Call) -> tuple[Tensor, Tensor]:
    qkv = _dense_last(call.qkv)
    out = native.empty((*qkv.shape[:3], call.channels), qkv.dtype)
    statistics = native.empty(statistics_shape(call))
    torch.ops.vtkernels_native.window_attention_forward.default(qkv, *_parameters(call), *_scalars(call), out, statistics)
    return out, statistics


def backward(call: Call, grad_out: Tensor, out: Tensor | None, statistics: Tensor) -> tuple[Tensor | None, ...]:
    qkv = _dense_last(call.qkv)
    d_qkv = native.empty(qkv.shape, qkv.dtype)
    d_parameters = [None if value is None else native.empty(value.shape) for value in call[1:5]]
    torch.ops.vtkernels_native.window_attention_backward.default(_dense_last(grad_out), qkv, *_parameters(call), *_scalars(call), d_qkv, *d_parameters)
    return d_qkv, *d_parameters


def _dense_last(x: Tensor) -> Tensor:
    # clone, not contiguous(): that leaves an empty tensor's strides as they are
    return x if x.stride(3) == 1 else x.clone(memory_format=torch.contiguous_format)


def _parameters(call: Call) -> tuple[Tensor | None, ...]:
    return tuple(None if value is None else value.float().contiguous() for value in call[1:5])


def _scalars(call: Call) -> tuple:
    return (call.num_heads, *call.window, *call.shift, call.scale, call.mask_padding, call.shift_first, call.dropout_p, call.seed)


BACKEND = Backend("cpu", why_not, {"forward": forward, "backward": backward})
