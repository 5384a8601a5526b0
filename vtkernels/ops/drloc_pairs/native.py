"""Pairs on the CPU: the C++ kernels of csrc/drloc_pairs."""

import torch
from torch import Tensor

from vtkernels._core import native, recycle
from vtkernels._core.op import Backend
from vtkernels.ops.drloc_pairs.common import Call, Scatter

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(phase: str, call: Call | Scatter) -> str | None:
    if call.main.device.type != "cpu":
        return f"it runs on the CPU, features are on {call.main.device}"
    if call.main.dtype not in _DTYPES:
        return f"it copies float32, bfloat16 and float16, features are {call.main.dtype}"
    return native.why_missing()


def forward(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    features = _dense_last(call.features)
    batch, _, _, channels = features.shape
    pairs = recycle.empty((batch, call.num_pairs, 2 * channels), features.dtype)
    targets = native.empty((batch, call.num_pairs, 2))
    positions = native.empty((batch, call.num_pairs, 4), torch.int64)
    given = None if call.positions is None else call.positions.contiguous()
    torch.ops.vtkernels_native.drloc_pairs_forward.default(features, given, call.signed, call.normalize, call.seed, call.offset, pairs, targets, positions)
    return pairs, targets, positions


def backward(call: Scatter) -> Tensor:
    grad = recycle.empty(call.shape, call.grad_pairs.dtype)
    torch.ops.vtkernels_native.drloc_pairs_backward.default(_dense_last(call.grad_pairs), call.positions.contiguous(), grad)
    return grad


def _dense_last(x: Tensor) -> Tensor:
    # clone, not contiguous(): that leaves an empty tensor's strides as they are
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


BACKEND = Backend("cpu", why_not, {"forward": forward, "backward": backward})
