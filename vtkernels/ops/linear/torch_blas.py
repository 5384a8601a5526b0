"""Linear and mlp by torch's own operators, on any device: cuBLAS on GPUs, MKL or oneDNN on CPUs."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core.op import Backend
from vtkernels.ops.linear.common import QUICK_GELU_SLOPE, Call, MlpCall, as_rows

_aten = torch.ops.aten


def _activate(activation: str, x: Tensor) -> Tensor:
    match activation:
        case "relu":
            return F.relu(x)
        case "gelu" | "gelu_tanh":
            return F.gelu(x, approximate=_approximation(activation))
        case "quick_gelu":
            return x * torch.sigmoid(QUICK_GELU_SLOPE * x)
        case "silu":
            return F.silu(x)
    return x


def _times_slope(activation: str, grad: Tensor, x: Tensor) -> Tensor:
    match activation:
        case "relu":
            return _aten.threshold_backward(grad, x, 0)
        case "gelu" | "gelu_tanh":
            return _aten.gelu_backward(grad, x, approximate=_approximation(activation))
        case "quick_gelu":
            # x sigmoid(1.702 x) is silu(1.702 x) / 1.702
            return _aten.silu_backward(grad, QUICK_GELU_SLOPE * x)
        case "silu":
            return _aten.silu_backward(grad, x)
    return grad


def _approximation(activation: str) -> str:
    return "tanh" if activation == "gelu_tanh" else "none"


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    rows = as_rows(grad)
    return (
        (rows @ weight).view(x.shape) if wanted[0] else None,
        rows.T @ as_rows(x) if wanted[1] else None,
        rows.sum(0) if wanted[2] else None,
    )


def forward(call: Call) -> tuple[Tensor, Tensor]:
    before = F.linear(call.x, call.weight, call.bias).contiguous()
    return _activate(call.activation, before), before if call.before_shape != (0,) else before.new_empty(0)


def backward(call: Call, grad: Tensor, before: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    return _gradients(_times_slope(call.activation, grad.contiguous(), before), call.x, call.weight, wanted)


def mlp_forward(call: MlpCall) -> tuple[Tensor, Tensor]:
    hidden = F.linear(call.x, call.first, call.first_bias).contiguous()
    out = F.linear(_activate(call.activation, hidden), call.second, call.second_bias)
    return out.contiguous(), hidden if call.keep else hidden.new_empty(0)


def mlp_backward(call: MlpCall, grad: Tensor, hidden: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    inner = any(wanted[:3])
    activated = _activate(call.activation, hidden) if wanted[3] else hidden
    d_activated, *of_second = _gradients(grad.contiguous(), activated, call.second, [inner, *wanted[3:]])
    if not inner:
        return None, None, None, *of_second
    return *_gradients(_times_slope(call.activation, d_activated, hidden), call.x, call.first, wanted[:3]), *of_second


LINEAR = Backend("torch", lambda phase, call: None, {"forward": forward, "backward": backward})
MLP = Backend("torch", lambda phase, call: None, {"forward": mlp_forward, "backward": mlp_backward})
