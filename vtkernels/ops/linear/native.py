"""Linear and mlp on the CPU: the C++ kernels of csrc/linear. They compute in float32; half precision is widened before and rounded after."""

import torch
from torch import Tensor

from vtkernels._core import native, recycle
from vtkernels._core.op import Backend
from vtkernels.ops.linear.common import ACTIVATIONS, Call, MlpCall, as_rows

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# from here on memory comes in huge pages: ordinary ones, fresh for every call, cost a tenth of a layer of Swin's first stage
_HUGE_PAGE = 2 << 20


def why_not(phase: str, call: Call | MlpCall) -> str | None:
    x = call.x
    if x.device.type != "cpu":
        return f"it runs on the CPU, x is on {x.device}"
    if x.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, x is {x.dtype}"
    if any(value is not None and 0 in value.shape for value in call[1:-2]):
        return "a layer without channels has nothing to compute"
    return native.why_missing()


def forward(call: Call) -> tuple[Tensor, Tensor]:
    call, dtype = _widened(call), call.x.dtype
    before = _empty(call.before_shape)
    out = _empty(call.out_shape)
    if call.rows:
        torch.ops.vtkernels_native.linear_forward.default(
            _rows(call.x), call.weight.contiguous(), _dense(call.bias), _code(call), out, before if before.numel() else None
        )
    return out.to(dtype), before.to(dtype)


def backward(call: Call, grad: Tensor, before: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    call, dtype, grad = _widened(call), call.x.dtype, _rows(grad.float())
    if call.activation != "none" and call.rows:
        d_before = _empty(grad.shape)
        torch.ops.vtkernels_native.activation_backward.default(grad, as_rows(before.float()), _code(call), d_before)
        grad = d_before
    grads = _Gradients(call[:3], wanted)
    if call.rows:
        torch.ops.vtkernels_native.linear_backward.default(grad, _rows(call.x), call.weight.contiguous(), *grads.written)
    return grads.all(dtype, call.rows, (grad,))


def mlp_forward(call: MlpCall) -> tuple[Tensor, Tensor]:
    call, dtype = _widened(call), call.x.dtype
    hidden = _empty(call.hidden_shape)
    out = _empty(call.out_shape)
    if call.rows:
        torch.ops.vtkernels_native.mlp_forward.default(
            _rows(call.x), call.first.contiguous(), _dense(call.first_bias), call.second.contiguous(), _dense(call.second_bias), _code(call), out,
            hidden if call.keep else None,
        )  # fmt: skip
    return out.to(dtype), hidden.to(dtype)


def mlp_backward(call: MlpCall, grad: Tensor, hidden: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    call, dtype, grad = _widened(call), call.x.dtype, _rows(grad.float())
    d_hidden = _empty((call.rows, call.first.shape[0])) if any(wanted[:3]) else None
    grads = _Gradients(call[:5], wanted)
    if call.rows:
        torch.ops.vtkernels_native.mlp_backward.default(
            grad, _rows(call.x), call.first.contiguous(), call.second.contiguous(), as_rows(hidden.float()), _code(call), d_hidden, *grads.written
        )
    return grads.all(dtype, call.rows, (d_hidden, grad))


class _Gradients:
    """The gradients of x and of each layer's weight and bias: those wanted, and those the kernel writes.

    It adds up a bias's gradient on the way through its weight's: where the weight is frozen, torch does.
    """

    def __init__(self, of: tuple[Tensor | None, ...], wanted: list[bool]):
        self.wanted = wanted
        is_bias = [i in (2, 4) for i in range(len(of))]
        by_kernel = [want and (not bias or wanted[i - 1]) for i, (want, bias) in enumerate(zip(wanted, is_bias, strict=True))]
        self.written = [_empty(value.shape) if mine else None for value, mine in zip(of, by_kernel, strict=True)]

    def all(self, dtype: torch.dtype, rows: int, d_layers: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """`d_layers` are the gradients of what the layers return, without activations."""
        if not rows:
            # a sum over no row
            self.written = [None if grad is None else grad.zero_() for grad in self.written]
        for bias, d_layer in zip((2, 4), d_layers, strict=False):
            if self.wanted[bias] and self.written[bias] is None:
                self.written[bias] = d_layer.sum(0)
        return tuple(None if grad is None else grad.to(dtype) for grad in self.written)


def _widened(call: Call | MlpCall) -> Call | MlpCall:
    if call.x.dtype == torch.float32:
        return call
    return call._replace(**{name: value.float() for name, value in call._asdict().items() if isinstance(value, Tensor)})


def _empty(shape: tuple[int, ...]) -> Tensor:
    return recycle.empty(shape, torch.float32, smallest=_HUGE_PAGE)


def _code(call: Call | MlpCall) -> int:
    return ACTIVATIONS.index(call.activation)


def _dense(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def _rows(x: Tensor) -> Tensor:
    rows = as_rows(x)
    # clone, not contiguous(): that leaves an empty tensor's strides as they are
    return rows if rows.stride(-1) == 1 else rows.clone(memory_format=torch.contiguous_format)


LINEAR = Backend("cpu", why_not, {"forward": forward, "backward": backward})
MLP = Backend("cpu", why_not, {"forward": mlp_forward, "backward": mlp_backward})
