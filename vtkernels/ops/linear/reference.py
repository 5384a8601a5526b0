"""Linear layers and the two-layer perceptron as plain tensor algebra: the specification every backend is held to.

Any floating dtype. Letters: C input channels, H hidden channels, D output channels; rows are tokens.
"""

import math

import torch
from torch import Tensor

from vtkernels._core.op import Backend
from vtkernels.ops.linear.common import QUICK_GELU_SLOPE, Call, MlpCall, as_rows

_TANH_SLOPE, _TANH_CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


def activate(activation: str, x: Tensor) -> Tensor:
    """The activation of x; each is smooth enough for autograd to check `slope`."""
    if activation == "relu":
        return x.clamp(min=0)
    if activation == "gelu":
        return x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    return x if activation == "none" else x * _gate(activation, x)[0].sigmoid()


def slope(activation: str, x: Tensor) -> Tensor:
    """The derivative of the activation at x."""
    if activation == "none":
        return torch.ones_like(x)
    if activation == "relu":
        # a NaN passes the gradient on, as in torch
        return (~(x <= 0)).to(x.dtype)
    if activation == "gelu":
        return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * (x * x * -0.5).exp() / math.sqrt(2 * math.pi)
    gate, gate_slope = _gate(activation, x)
    opened = gate.sigmoid()
    return opened + x * opened * (1 - opened) * gate_slope


def _gate(activation: str, x: Tensor) -> tuple[Tensor, Tensor | float]:
    """s and s' of the activations of the form x * sigmoid(s(x)); (1 + tanh(y)) / 2 is sigmoid(2 y)."""
    if activation == "gelu_tanh":
        return _TANH_SLOPE * (x + _TANH_CUBIC * x**3), _TANH_SLOPE * (1 + 3 * _TANH_CUBIC * x * x)
    return (QUICK_GELU_SLOPE * x, QUICK_GELU_SLOPE) if activation == "quick_gelu" else (x, 1.0)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = as_rows(x) @ weight.T
    return (out if bias is None else out + bias).view(*x.shape[:-1], weight.shape[0])


def _gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, the weight and the bias, from that of x W^T + b."""
    rows = as_rows(grad)
    return (rows @ weight).view(x.shape), rows.T @ as_rows(x), rows.sum(0)


def forward(call: Call) -> tuple[Tensor, Tensor]:
    call = _detached(call)
    before = _product(call.x, call.weight, call.bias)
    out = activate(call.activation, before)
    return out, before if call.before_shape != (0,) else before.new_empty(0)


def backward(call: Call, grad: Tensor, before: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias, None for those not wanted."""
    call = _detached(call)
    grad = grad if call.activation == "none" else grad * slope(call.activation, before)
    return tuple(gradient if want else None for gradient, want in zip(_gradients(grad, call.x, call.weight), wanted, strict=True))


def mlp_forward(call: MlpCall) -> tuple[Tensor, Tensor]:
    call = _detached(call)
    hidden = _product(call.x, call.first, call.first_bias)
    out = _product(activate(call.activation, hidden), call.second, call.second_bias)
    return out, hidden if call.keep else hidden.new_empty(0)


def mlp_backward(call: MlpCall, grad: Tensor, hidden: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    """Gradients of x, the first weight and bias, the second weight and bias, None for those not wanted."""
    call = _detached(call)
    d_activated, *of_second = _gradients(grad, activate(call.activation, hidden), call.second)
    of_first = _gradients(d_activated * slope(call.activation, hidden), call.x, call.first)
    return tuple(gradient if want else None for gradient, want in zip((*of_first, *of_second), wanted, strict=True))


def _detached(call: Call | MlpCall) -> Call | MlpCall:
    """Torch's matmul takes another path, and rounds otherwise, for tensors that require gradients."""
    return call._replace(**{name: value.detach() for name, value in call._asdict().items() if isinstance(value, Tensor)})


LINEAR = Backend("reference", lambda phase, call: None, {"forward": forward, "backward": backward})
MLP = Backend("reference", lambda phase, call: None, {"forward": mlp_forward, "backward": mlp_backward})
