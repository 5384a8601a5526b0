"""Talking-heads attention: the public function, its schema, and its place in autograd."""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels._core.autocast import has_autocast
from vtkernels._core.op import Op, define, differentiable, differentiable_again
from vtkernels._core.philox import draw_seed
from vtkernels.ops.talking_heads_attention import reference
from vtkernels.ops.talking_heads_attention.common import Call

_HERE = "vtkernels.ops.talking_heads_attention"
OP = Op("talking_heads_attention", {"triton": f"{_HERE}.triton", "cpu": f"{_HERE}.native", "reference": f"{_HERE}.reference"})
_PARAMETERS = ("pre_weight", "pre_bias", "post_weight", "post_bias")


def talking_heads_attention(
    qkv: Tensor,
    pre_weight: Tensor,
    pre_bias: Tensor | None,
    post_weight: Tensor,
    post_bias: Tensor | None,
    *,
    num_heads: int,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention whose scores are mixed across heads before and after the softmax, as in CaiT's trunk.

    From the qkv projection's output to the output projection's input. No tensor of scores is made, and nothing but the
    arguments is kept for the backward, which computes them anew. Gradients reach `qkv` and the four parameters, and
    are bitwise repeatable; that of `pre_bias`, which the softmax cancels, is zero.

    Args:
        qkv: [B, N, 3C], channels ordered (q, k, v) x heads x head_dim; any strides.
        pre_weight: [heads, heads], applied to the scores of each (query, key) as a Linear layer on the head axis.
        pre_bias: [heads] or None.
        post_weight: [heads, heads], applied to the softmax's probabilities; rows need not sum to one any more.
        post_bias: [heads] or None.
        num_heads: heads; C must be a multiple of it.
        scale: multiplies the scores; default head_dim ** -0.5.
        dropout_p: probability of dropping an attention weight, after the second mixing.
        seed: of the dropout; the same seed drops the same weights on every backend. Default: drawn from torch.
        backend: auto, triton, cpu or reference.

    Returns:
        [B, N, C]
    """
    return torch.ops.vtkernels.talking_heads_attention.default(
        *_prepare(qkv, pre_weight, pre_bias, post_weight, post_bias, num_heads, scale, dropout_p, seed, backend)
    )


def _prepare(qkv, pre_weight, pre_bias, post_weight, post_bias, num_heads, scale, dropout_p, seed, backend) -> tuple[Any, ...]:
    """The op's arguments from those of the public function: checked, defaults filled in."""
    if isinstance(qkv, Tensor) and _autocast_applies(qkv):
        qkv = qkv.to(torch.get_autocast_dtype(qkv.device.type))
    _validate(qkv, (pre_weight, pre_bias, post_weight, post_bias), num_heads, scale, dropout_p)
    check.check_seed(OP.name, seed)
    OP.check_name(backend)
    if scale is None:
        scale = (qkv.shape[2] // 3 // num_heads) ** -0.5
    if seed is None:
        seed = draw_seed() if dropout_p > 0 else 0
    return qkv, pre_weight, pre_bias, post_weight, post_bias, num_heads, float(scale), float(dropout_p), seed, backend


def _autocast_applies(qkv: Tensor) -> bool:
    device = qkv.device.type
    # not every device has an autocast mode: to ask for meta's is an error
    return has_autocast(device) and torch.is_autocast_enabled(device) and qkv.is_floating_point() and qkv.dtype != torch.float64


def _validate(qkv, parameters, num_heads, scale, dropout_p) -> None:
    """Refuse what cannot be meant."""
    name = OP.name
    check.check_tensor(name, "qkv", qkv, 3, "[B, N, 3C]")
    check.check_floating(name, "qkv", qkv)
    if not isinstance(num_heads, int) or isinstance(num_heads, bool) or num_heads < 1:
        check.fail(name, "num_heads", "be a positive int", repr(num_heads), "CaiT uses C // 48")
    tokens, channels3 = qkv.shape[1:]
    if tokens < 1:
        check.fail(name, "qkv", "have at least one token", list(qkv.shape), "only the batch may be empty")
    if channels3 == 0 or channels3 % 3:
        check.fail(name, "qkv's last dimension", "be 3 * C (q, k and v side by side)", channels3, "pass the output of Linear(C, 3 * C)")
    if channels3 // 3 % num_heads:
        check.fail(name, "C", f"be a multiple of num_heads={num_heads}", channels3 // 3, "pass the head count the qkv projection was built for")
    if scale is not None:
        check.check_number(name, "scale", scale, "None stands for head_dim ** -0.5")
    check.check_dropout(name, dropout_p)
    for parameter, value in zip(_PARAMETERS, parameters, strict=True):
        is_bias = parameter.endswith("bias")
        if value is None and is_bias:
            continue
        check.check_tensor(name, parameter, value)
        shape = (num_heads,) if is_bias else (num_heads, num_heads)
        check.check_shape(name, parameter, value, shape, "it mixes heads: pass a Linear(num_heads, num_heads)'s")
        check.check_companion(name, parameter, value, "qkv", qkv)


_COMMON = (
    "Tensor qkv, Tensor pre_weight, Tensor? pre_bias, Tensor post_weight, Tensor? post_bias, int num_heads, "
    "float scale, float dropout_p, SymInt seed, str backend"
)


def _forward(*args: Any) -> Tensor:
    call = Call(*args[:-1])
    return OP.select("forward", args[-1], call)(call)


def _forward_fake(qkv: Tensor, *rest: Any) -> Tensor:
    return qkv.new_empty((*qkv.shape[:2], qkv.shape[2] // 3))


def _backward(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    call = Call(*args[:-1])
    grads = OP.select("backward", args[-1], call)(call, grad_out)
    # an absent parameter has an empty gradient (schemas have no optional outputs), a present one its own dtype
    return grads[0], *(_absent(call) if value is None else grad.to(value.dtype) for value, grad in zip(call[1:5], grads[1:], strict=True))


def _backward_fake(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    call = Call(*args[:-1])
    return call.qkv.new_empty(call.qkv.shape), *(_absent(call) if value is None else value.new_empty(value.shape) for value in call[1:5])


def _absent(call: Call) -> Tensor:
    return call.qkv.new_empty(0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.scalars = inputs[5:]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors, nothing = ctx.saved_tensors, (None,) * len(ctx.scalars)
    if grad_out is None:
        return None, None, None, None, None, *nothing
    grads = torch.ops.vtkernels.talking_heads_attention_backward.default(grad_out, *tensors, *ctx.scalars)
    return *(None if value is None else grad for value, grad in zip(tensors, grads, strict=True)), *nothing


define(f"talking_heads_attention({_COMMON}) -> Tensor", _forward, _forward_fake)
define(
    f"talking_heads_attention_backward(Tensor grad_out, {_COMMON}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
differentiable("talking_heads_attention", _save, _differentiate)
differentiable_again("talking_heads_attention_backward", 1, lambda *args: reference.attend(Call(*args[:-1])))


def _example(device: torch.device) -> dict[str, Any]:
    """A CaiT-XXS block on a quarter of its tokens."""
    weight = torch.eye(4, device=device)
    tensors = {"qkv": torch.zeros(1, 49, 576, device=device), "pre_weight": weight, "pre_bias": None, "post_weight": weight, "post_bias": None}
    return {**tensors, "num_heads": 4}


# the seed changes no backend's answer: given, none is drawn from the caller's generator
OP.explains(talking_heads_attention, lambda **arguments: Call(*_prepare(**arguments | {"seed": arguments["seed"] or 0})[:-1]), _example)
