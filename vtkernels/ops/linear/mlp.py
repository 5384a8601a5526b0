"""The two-layer perceptron of a transformer block."""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core.op import Op, define, differentiable, differentiable_again
from vtkernels._core.preference import Preference
from vtkernels.ops.linear import torch_blas
from vtkernels.ops.linear.common import MlpCall, autocast
from vtkernels.ops.linear.op import activation_name, check_input, check_layer, present, will_differentiate, with_kept

_HERE = "vtkernels.ops.linear"
OP = Op("mlp", {"cpu": f"{_HERE}.native:MLP", "torch": f"{_HERE}.torch_blas:MLP", "reference": f"{_HERE}.reference:MLP"})
TUNER = Preference(OP, ("cpu", "torch"))


def mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    activation: str | None = "gelu",
    *,
    backend: str = "auto",
) -> Tensor:
    """Linear, activation, Linear: activation(x W1^T + b1) W2^T + b2.

    The first layer's output is saved once, before the activation, which the backward computes anew: the activated rows are
    never in memory as a whole. Float32 is computed in float32 throughout.

    Args:
        x: [..., C]; any strides.
        w1: [H, C], w2: [D, H], as torch's Linear stores them.
        b1: [H] or None, b2: [D] or None.
        activation: gelu (exact), gelu_tanh, quick_gelu, relu, silu or None.
        backend: auto, cpu, torch or reference.

    Returns:
        [..., D]
    """
    return torch.ops.vtkernels.mlp.default(*_prepare(x, w1, b1, w2, b2, activation, backend))[0]


def _prepare(x, w1, b1, w2, b2, activation, backend) -> tuple[Any, ...]:
    name = OP.name
    x, w1, b1, w2, b2 = map(autocast, (x, w1, b1, w2, b2))
    check_input(name, x)
    check_layer(name, "w1", w1, "b1", b1, x, x.shape[-1])
    check_layer(name, "w2", w2, "b2", b2, x, w1.shape[0])
    OP.check_name(backend)
    return x, w1, b1, w2, b2, activation_name(name, activation), will_differentiate(x, w1, b1, w2, b2), backend


_COMMON = "Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str activation, bool keep"


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    return TUNER.run("forward", args[-1], MlpCall(*args[:-1]))


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    call = MlpCall(*args[:-1])
    return call.x.new_empty(call.out_shape), call.x.new_empty(call.hidden_shape)


def _backward(grad: Tensor, hidden: Tensor, wanted: list[bool], *args: Any) -> tuple[Tensor, ...]:
    call = MlpCall(*args[:-1])
    if not call.keep:
        call, hidden = with_kept(OP, call, args[-1])
    return present(call.x, TUNER.run("backward", args[-1], call, grad, hidden, wanted))


def _backward_fake(grad: Tensor, hidden: Tensor, wanted: list[bool], *args: Any) -> tuple[Tensor, ...]:
    return tuple(value.new_empty(value.shape) if want else args[0].new_empty(0) for value, want in zip(args[:5], wanted, strict=True))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.scalars = inputs[5:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    *tensors, hidden = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:5])
    grads = torch.ops.vtkernels.mlp_backward.default(grad, hidden, wanted, *tensors, *ctx.scalars)
    return *(gradient if want else None for gradient, want in zip(grads, wanted, strict=True)), None, None, None


define(f"mlp({_COMMON}, str backend) -> (Tensor, Tensor)", _forward, _forward_fake)
define(
    f"mlp_backward(Tensor grad, Tensor hidden, bool[] wanted, {_COMMON}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _backward, _backward_fake
)
differentiable("mlp", _save, _differentiate)
differentiable_again("mlp_backward", 3, lambda *args: torch_blas.mlp_forward(MlpCall(*args[:-1]))[0])


def _example(device: torch.device) -> dict[str, Any]:
    """Swin-T's first stage, one image."""
    x, wide, narrow = torch.zeros(1, 3136, 96, device=device), torch.zeros(384, 96, device=device), torch.zeros(96, 384, device=device)
    return {"x": x, "w1": wide, "b1": torch.zeros(384, device=device), "w2": narrow, "b2": torch.zeros(96, device=device)}


OP.explains(mlp, lambda **arguments: MlpCall(*_prepare(**arguments)[:-1]), _example)
