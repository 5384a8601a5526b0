"""Class attention: the public function, its schema, and its place in autograd."""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels._core.autocast import has_autocast
from vtkernels._core.op import Op, define, differentiable, differentiable_again
from vtkernels._core.philox import draw_seed
from vtkernels.ops.class_attention import reference
from vtkernels.ops.class_attention.common import Call, saved_shapes, wide_dtype

_HERE = "vtkernels.ops.class_attention"
OP = Op("class_attention", {"triton": f"{_HERE}.triton:CLASS", "cpu": f"{_HERE}.native:CLASS", "reference": f"{_HERE}.reference:CLASS"})
_WEIGHTS, _BIASES = ("q_weight", "k_weight", "v_weight"), ("q_bias", "k_bias", "v_bias")


def class_attention(
    tokens: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    v_bias: Tensor | None = None,
    *,
    num_heads: int,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    return_probs: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """CaiT's class attention: the class token attends to all tokens, itself among them; its three projections included.

    There is one query an image, so keys and values are never formed: `q . (W_k x) = (W_k^T q) . x` and
    `sum p (W_v x) = W_v (sum p x)`, which leaves C / heads times fewer multiplications. Gradients reach the tokens, the
    weights and the biases, and are bitwise repeatable.

    Args:
        tokens: [B, 1 + N, C], the class token first; any strides.
        q_weight, k_weight, v_weight: [C, C], as torch's Linear stores them.
        q_bias, v_bias: [C].
        k_bias: [C]; it moves all scores of a row alike, so it changes nothing and its gradient is exactly 0.
        num_heads: heads; C must be a multiple of it.
        scale: multiplies the scores; default (C / heads) ** -0.5.
        dropout_p: probability of dropping an attention weight.
        seed: of the dropout; the same seed drops the same weights on every backend. Default: drawn from torch.
        return_probs: also return the attention weights, before dropout, without a gradient.
        backend: auto, triton, cpu or reference.

    Returns:
        [B, C], what enters the output projection; with `return_probs` also [B, heads, 1 + N] in float32 (float64 for float64).
    """
    arguments = _prepare(
        tokens, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, num_heads, scale, dropout_p, seed, return_probs, backend
    )  # fmt: skip
    out, probabilities, *_ = torch.ops.vtkernels.class_attention.default(*arguments)
    return (out, probabilities.mT) if return_probs else out


def _prepare(tokens, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, num_heads, scale, dropout_p, seed, return_probs, backend) -> tuple[Any, ...]:
    """The op's arguments from those of the public function: checked, defaults filled in."""
    name = OP.name
    tokens = autocast(tokens)
    check.check_tensor(name, "tokens", tokens, 3, "[B, 1 + N, C]")
    check.check_floating(name, "tokens", tokens)
    _, count, channels = tokens.shape
    if count < 1:
        check.fail(name, "tokens", "hold the class token at least", list(tokens.shape), "put it before the others: torch.cat((class_token, patches), dim=1)")
    check_heads(name, channels, num_heads)
    parameters = (q_weight, k_weight, v_weight), (q_bias, k_bias, v_bias)
    for names, values, shape in zip((_WEIGHTS, _BIASES), parameters, ((channels, channels), (channels,)), strict=True):
        for parameter, value in zip(names, values, strict=True):
            if value is None and names is _BIASES:
                continue
            check.check_tensor(name, parameter, value)
            check.check_shape(name, parameter, value, shape, "pass what Linear(C, C) holds")
            check.check_companion(name, parameter, value, "tokens", tokens)
    check.check_dropout(name, dropout_p)
    check.check_seed(name, seed)
    check.check_bool(name, "return_probs", return_probs)
    OP.check_name(backend)
    scale = (channels // num_heads) ** -0.5 if scale is None else check.check_number(name, "scale", scale, "None stands for (C / heads) ** -0.5")
    if seed is None:
        seed = draw_seed() if dropout_p > 0 else 0
    return tokens, q_weight, k_weight, v_weight, q_bias, k_bias, v_bias, num_heads, scale, float(dropout_p), seed, backend


def autocast(x: Any) -> Any:
    """In autocast's dtype, where it is on."""
    # not every device has an autocast mode: to ask for meta's is an error
    if not isinstance(x, Tensor) or not has_autocast(x.device.type) or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type)) if x.is_floating_point() and x.dtype != torch.float64 else x


def check_heads(name: str, channels: int, num_heads: Any) -> None:
    if not isinstance(num_heads, int) or isinstance(num_heads, bool) or num_heads < 1:
        check.fail(name, "num_heads", "be a positive int", repr(num_heads), "CaiT uses C // 48")
    if channels == 0 or channels % num_heads:
        check.fail(name, "C", f"be a positive multiple of num_heads={num_heads}", channels, "pass the head count the projections were built for")


_COMMON = (
    "Tensor tokens, Tensor q_weight, Tensor k_weight, Tensor v_weight, Tensor? q_bias, Tensor? k_bias, Tensor? v_bias, "
    "int num_heads, float scale, float dropout_p, SymInt seed"
)
_SAVED = "Tensor probabilities, Tensor queries, Tensor directions, Tensor mixtures"


def _forward(*args: Any) -> tuple[Tensor, ...]:
    call = Call(*args[:-1])
    return OP.select("forward", args[-1], call)(call)


def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    call = Call(*args[:-1])
    tokens, wide = call.tokens, wide_dtype(call.tokens)
    return tokens.new_empty((tokens.shape[0], tokens.shape[2])), *(tokens.new_empty(shape, dtype=wide) for shape in saved_shapes(call))


def _backward(grad_out: Tensor, probabilities: Tensor, queries: Tensor, directions: Tensor, mixtures: Tensor, *args: Any) -> tuple[Tensor, ...]:
    call = Call(*args[:-1])
    grads = OP.select("backward", args[-1], call)(call, grad_out, probabilities, queries, directions, mixtures)
    # an absent parameter has an empty gradient (schemas have no optional outputs), a present one its own dtype
    return tuple(call.tokens.new_empty(0) if value is None else grad.to(value.dtype) for value, grad in zip(call[:7], grads, strict=True))


def _backward_fake(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
    call = Call(*args[4:-1])
    return tuple(call.tokens.new_empty(0) if value is None else value.new_empty(value.shape) for value in call[:7])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7], *output[1:])
    ctx.scalars = inputs[7:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    # read once: activation checkpointing recomputes them for one reading only
    stored = ctx.saved_tensors
    tensors, saved = stored[:7], stored[7:]
    nothing = (None,) * len(ctx.scalars)
    if grad_out is None:
        return *(None for _ in tensors), *nothing
    grads = torch.ops.vtkernels.class_attention_backward.default(grad_out, *saved, *tensors, *ctx.scalars)
    return *(None if value is None else grad for value, grad in zip(tensors, grads, strict=True)), *nothing


define(f"class_attention({_COMMON}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _forward, _forward_fake)
define(
    f"class_attention_backward(Tensor grad_out, {_SAVED}, {_COMMON}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
differentiable("class_attention", _save, _differentiate)
differentiable_again("class_attention_backward", 5, lambda *args: reference.attend(Call(*args[:-1])))


def _example(device: torch.device) -> dict[str, Any]:
    """CaiT-XXS24's class attention on one image."""
    weight = torch.zeros(192, 192, device=device)
    return {"tokens": torch.zeros(1, 197, 192, device=device), "q_weight": weight, "k_weight": weight, "v_weight": weight, "num_heads": 4}


# the seed changes no backend's answer: given, none is drawn from the caller's generator
OP.explains(class_attention, lambda **arguments: Call(*_prepare(**arguments | {"seed": arguments["seed"] or 0})[:-1]), _example)
