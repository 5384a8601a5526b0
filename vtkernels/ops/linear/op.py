"""A linear layer with its activation: the public function, its schema, and its place in autograd."""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels._core.op import Op, define, differentiable, differentiable_again
from vtkernels._core.preference import Preference
from vtkernels.ops.linear import torch_blas
from vtkernels.ops.linear.common import ACTIVATIONS, Call, autocast

_HERE = "vtkernels.ops.linear"
OP = Op("linear", {"cpu": f"{_HERE}.native:LINEAR", "torch": f"{_HERE}.torch_blas:LINEAR", "reference": f"{_HERE}.reference:LINEAR"})
TUNER = Preference(OP, ("cpu", "torch"))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, *, backend: str = "auto") -> Tensor:
    """A linear layer and the activation after it: activation(x W^T + b), as `torch.nn.functional.linear` does it, faster where torch's BLAS is slow.

    Float32 is computed in float32 throughout. Which backend runs is measured per machine and shape (see `VTKERNELS_MEASURE`).

    Args:
        x: [..., C]; any strides.
        weight: [D, C], as torch's Linear stores it.
        bias: [D].
        activation: None, relu, gelu (exact), gelu_tanh, quick_gelu or silu.
        backend: auto, cpu, torch or reference.

    Returns:
        [..., D]
    """
    return torch.ops.vtkernels.linear.default(*_prepare(x, weight, bias, activation, backend))[0]


def _prepare(x, weight, bias, activation, backend) -> tuple[Any, ...]:
    """The op's arguments from those of the public function: checked, defaults filled in."""
    x, weight, bias = autocast(x), autocast(weight), autocast(bias)
    check_input(OP.name, x)
    check_layer(OP.name, "weight", weight, "bias", bias, x, x.shape[-1])
    OP.check_name(backend)
    return x, weight, bias, activation_name(OP.name, activation), will_differentiate(x, weight, bias), backend


def check_input(op: str, x: Any) -> None:
    check.check_tensor(op, "x", x)
    check.check_floating(op, "x", x)
    if x.dim() == 0:
        check.fail(op, "x", "have at least one dimension [..., C]", [], "try x.reshape(1)")


def check_layer(op: str, weight_name: str, weight: Any, bias_name: str, bias: Any, x: Tensor, channels: int) -> None:
    """A weight [D, channels] and its bias, of x's dtype and on its device."""
    check.check_tensor(op, weight_name, weight, 2, "[D, C]")
    if weight.shape[1] != channels:
        check.fail(op, weight_name, f"have shape [D, {channels}]", list(weight.shape), "its columns are the channels it is applied to; try its transpose")
    named = [(weight_name, weight)]
    if bias is not None:
        check.check_tensor(op, bias_name, bias)
        check.check_shape(op, bias_name, bias, (weight.shape[0],), f"one number for each row of {weight_name}")
        named.append((bias_name, bias))
    for name, value in named:
        if value.dtype != x.dtype:
            check.fail(op, name, f"have x's dtype {x.dtype}", value.dtype, f"try {name}.to(x.dtype)", TypeError)
        if value.device != x.device:
            check.fail(op, name, f"be on the device of x ({x.device})", value.device, f"try {name}.to(x.device)")


def activation_name(op: str, activation: Any) -> str:
    name = "none" if activation is None else activation
    if name not in ACTIVATIONS:
        check.fail(op, "activation", f"be None or one of {', '.join(ACTIVATIONS[1:])}", repr(activation), "apply another one to the result")
    return name


def will_differentiate(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


_COMMON = "Tensor x, Tensor weight, Tensor? bias, str activation, bool keep"


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    return TUNER.run("forward", args[-1], Call(*args[:-1]))


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    call = Call(*args[:-1])
    return call.x.new_empty(call.out_shape), call.x.new_empty(call.before_shape)


def _backward(grad: Tensor, before: Tensor, wanted: list[bool], *args: Any) -> tuple[Tensor, ...]:
    call = Call(*args[:-1])
    if not call.keep:
        call, before = with_kept(OP, call, args[-1])
    return present(call.x, TUNER.run("backward", args[-1], call, grad, before, wanted))


def _backward_fake(grad: Tensor, before: Tensor, wanted: list[bool], *args: Any) -> tuple[Tensor, ...]:
    return tuple(value.new_empty(value.shape) if want else args[0].new_empty(0) for value, want in zip(args[:3], wanted, strict=True))


def with_kept(op: Op, call: Any, backend: str) -> tuple[Any, Tensor]:
    """The call with what its forward did not keep, computed anew: a transform may differentiate tensors that do not seem to require it."""
    call = call._replace(keep=True)
    return call, op.select("forward", backend, call)(call)[1]


def present(x: Tensor, grads: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """An absent gradient is an empty tensor: schemas have no optional outputs."""
    return tuple(x.new_empty(0) if grad is None else grad for grad in grads)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], output[1])
    ctx.scalars = inputs[3:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    *tensors, before = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    grads = torch.ops.vtkernels.linear_backward.default(grad, before, wanted, *tensors, *ctx.scalars)
    return *(gradient if want else None for gradient, want in zip(grads, wanted, strict=True)), None, None, None


define(f"linear({_COMMON}, str backend) -> (Tensor, Tensor)", _forward, _forward_fake)
define(f"linear_backward(Tensor grad, Tensor before, bool[] wanted, {_COMMON}, str backend) -> (Tensor, Tensor, Tensor)", _backward, _backward_fake)
differentiable("linear", _save, _differentiate)
differentiable_again("linear_backward", 3, lambda *args: torch_blas.forward(Call(*args[:-1]))[0])


def _example(device: torch.device) -> dict[str, Any]:
    """A projection of Swin-T's first stage, one image."""
    return {"x": torch.zeros(1, 3136, 96, device=device), "weight": torch.zeros(96, 96, device=device), "bias": torch.zeros(96, device=device)}


OP.explains(linear, lambda **arguments: Call(*_prepare(**arguments)[:-1]), _example)
