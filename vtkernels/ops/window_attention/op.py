"""Shifted-window attention: the public function, its schema, and its place in autograd."""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels._core.autocast import has_autocast
from vtkernels._core.op import Op, define, differentiable, differentiable_again
from vtkernels._core.philox import draw_seed
from vtkernels.ops.window_attention import reference
from vtkernels.ops.window_attention.common import Call, statistics_shape

_HERE = "vtkernels.ops.window_attention"
OP = Op("window_attention", {"triton": f"{_HERE}.triton", "cuda": f"{_HERE}.cuda", "cpu": f"{_HERE}.native", "reference": f"{_HERE}.reference"})
_PARAMETERS = ("bias_table", "bias", "logit_scale", "qkv_bias")


def window_attention(
    qkv: Tensor,
    bias_table: Tensor | None = None,
    *,
    num_heads: int,
    window_size: int | tuple[int, int],
    shift_size: int | tuple[int, int] = 0,
    bias: Tensor | None = None,
    logit_scale: Tensor | None = None,
    scale: float | None = None,
    qkv_bias: Tensor | None = None,
    mask_padding: bool = False,
    shift_first: bool = False,
    dropout_p: float = 0.0,
    seed: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention inside the (shifted) windows of a feature map: from the qkv projection's output to the output projection's input.

    Partition, cyclic shift, padding, position bias, shift mask, softmax, dropout, product and merge are index
    arithmetic inside one kernel; no window, mask or score tensor is made. Gradients reach `qkv`, `bias_table`,
    `bias`, `logit_scale` and `qkv_bias`, and are bitwise repeatable.

    Args:
        qkv: [B, H, W, 3C], channels ordered (q, k, v) x heads x head_dim; any strides.
        bias_table: [(2 Wh - 1)(2 Ww - 1), heads], Swin's relative position bias.
        num_heads: heads; C must be a multiple of it.
        window_size: window edge or (rows, columns), 2 to 32 each.
        shift_size: cyclic shift, less than the window.
        bias: [heads, N, N] instead of `bias_table`, N tokens of a window.
        logit_scale: [heads]; given, rows of q and k are normalised and scores multiplied by it (SwinV2).
        scale: multiplies the scores; default head_dim ** -0.5, or 1 with `logit_scale`.
        qkv_bias: [3C], what a zero-padded token projects to when the map is no multiple of the window; default zeros.
        mask_padding: padded tokens take no part at all (by default they do, as in the published models).
        shift_first: shift the map, then pad it (timm), instead of padding it, then shifting (torchvision).
            The same unless the map is both shifted and padded.
        dropout_p: probability of dropping an attention weight.
        seed: of the dropout; the same seed drops the same weights on every backend. Default: drawn from torch.
        backend: auto, triton, cuda (the backward of large windows only; the forward as under auto), cpu or reference.

    Returns:
        [B, H, W, C]
    """
    arguments = _prepare(
        qkv, bias_table, num_heads, window_size, shift_size, bias, logit_scale, scale, qkv_bias, mask_padding, shift_first, dropout_p, seed, backend
    )
    return torch.ops.vtkernels.window_attention.default(*arguments)[0]


def _prepare(
    qkv, bias_table, num_heads, window_size, shift_size, bias, logit_scale, scale, qkv_bias, mask_padding, shift_first, dropout_p, seed, backend
) -> tuple[Any, ...]:
    """The op's arguments from those of the public function: checked, defaults filled in."""
    if isinstance(qkv, Tensor) and _autocast_applies(qkv):
        qkv = qkv.to(torch.get_autocast_dtype(qkv.device.type))
    window, shift = _validate(qkv, bias_table, bias, logit_scale, qkv_bias, num_heads, window_size, shift_size, dropout_p)
    check.check_seed(OP.name, seed)
    check.check_bool(OP.name, "mask_padding", mask_padding)
    check.check_bool(OP.name, "shift_first", shift_first)
    OP.check_name(backend)
    if scale is None:
        scale = (qkv.shape[3] // 3 // num_heads) ** -0.5 if logit_scale is None else 1.0
    scale = check.check_number(OP.name, "scale", scale, "a scale that is learnt is logit_scale")
    if seed is None:
        seed = draw_seed() if dropout_p > 0 else 0
    scalars = (num_heads, window, shift, scale, mask_padding, shift_first, float(dropout_p), seed)
    return qkv, bias_table, bias, logit_scale, qkv_bias, *scalars, backend


def _autocast_applies(qkv: Tensor) -> bool:
    device = qkv.device.type
    # not every device has an autocast mode: to ask for meta's is an error
    return has_autocast(device) and torch.is_autocast_enabled(device) and qkv.is_floating_point() and qkv.dtype != torch.float64


def _validate(qkv, bias_table, bias, logit_scale, qkv_bias, num_heads, window_size, shift_size, dropout_p) -> tuple[tuple[int, int], tuple[int, int]]:
    """Refuse what cannot be meant; return window and shift as pairs."""
    name = OP.name
    check.check_tensor(name, "qkv", qkv, 4, "[B, H, W, 3C]")
    check.check_floating(name, "qkv", qkv)
    if not isinstance(num_heads, int) or num_heads < 1:
        check.fail(name, "num_heads", "be a positive int", repr(num_heads), "Swin uses C // 32")
    height, width, channels3 = qkv.shape[1:]
    if height < 1 or width < 1:
        check.fail(name, "the map", "have at least one row and one column", f"{height} x {width}", "only the batch may be empty")
    if channels3 == 0 or channels3 % 3:
        check.fail(name, "qkv's last dimension", "be 3 * C (q, k and v side by side)", channels3, "pass the output of Linear(C, 3 * C)")
    if channels3 // 3 % num_heads:
        check.fail(name, "C", f"be a multiple of num_heads={num_heads}", channels3 // 3, "pass the head count the qkv projection was built for")
    window = check.pair(name, "window_size", window_size)
    shift = check.pair(name, "shift_size", shift_size)
    if not all(2 <= size <= 32 for size in window):
        check.fail(name, "window_size", "lie between 2 and 32", window, "larger windows are plain attention: use torch's scaled_dot_product_attention")
    if not all(0 <= s < size for s, size in zip(shift, window, strict=True)):
        check.fail(name, "shift_size", f"lie between 0 and {tuple(size - 1 for size in window)} for window {window}", shift, "Swin uses window // 2")
    check.check_dropout(name, dropout_p)
    if bias_table is not None and bias is not None:
        check.fail(name, "the position bias", "come as bias_table or as bias", "both", "drop one, or add bias_table's gathered form to bias")
    tokens, span = window[0] * window[1], (2 * window[0] - 1) * (2 * window[1] - 1)
    shapes = {"bias_table": (span, num_heads), "bias": (num_heads, tokens, tokens), "logit_scale": (num_heads,), "qkv_bias": (channels3,)}
    for parameter, value in zip(_PARAMETERS, (bias_table, bias, logit_scale, qkv_bias), strict=True):
        if value is None:
            continue
        check.check_tensor(name, parameter, value)
        check.check_shape(name, parameter, value, shapes[parameter], "was it built for another window size or head count?")
        check.check_companion(name, parameter, value, "qkv", qkv)
    return window, shift


_COMMON = (
    "Tensor qkv, Tensor? bias_table, Tensor? bias, Tensor? logit_scale, Tensor? qkv_bias, int num_heads, int[2] window_size, int[2] shift_size, "
    "float scale, bool mask_padding, bool shift_first, float dropout_p, SymInt seed"
)


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    call = _call(args[:-1])
    return OP.select("forward", args[-1], call)(call)


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    call = _call(args[:-1])
    statistics = call.qkv.new_empty(statistics_shape(call), dtype=torch.promote_types(call.qkv.dtype, torch.float32))
    return call.qkv.new_empty((*call.qkv.shape[:3], call.channels)), statistics


def _backward(grad_out: Tensor, out: Tensor | None, statistics: Tensor, *args: Any) -> tuple[Tensor, ...]:
    call = _call(args[:-1])
    grads = OP.select("backward", args[-1], call)(call, grad_out, out, statistics)
    # an absent parameter has an empty gradient (schemas have no optional outputs), a present one its own dtype
    return grads[0], *(_absent(call) if value is None else grad.to(value.dtype) for value, grad in zip(call[1:5], grads[1:], strict=True))


def _backward_fake(grad_out: Tensor, out: Tensor | None, statistics: Tensor, *args: Any) -> tuple[Tensor, ...]:
    call = _call(args[:-1])
    return call.qkv.new_empty(call.qkv.shape), *(_absent(call) if value is None else value.new_empty(value.shape) for value in call[1:5])


def _absent(call: Call) -> Tensor:
    return call.qkv.new_empty(0)


def _call(args: tuple[Any, ...]) -> Call:
    call = Call(*args)
    return call._replace(window=tuple(call.window), shift=tuple(call.shift))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    out, statistics = output
    ctx.save_for_backward(*inputs[:5], out if statistics.numel() else None, statistics)
    ctx.scalars = inputs[5:]
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *tensors, out, statistics = ctx.saved_tensors
    nothing = (None,) * len(ctx.scalars)
    if grad_out is None:
        return None, None, None, None, None, *nothing
    grads = torch.ops.vtkernels.window_attention_backward.default(grad_out, out, statistics, *tensors, *ctx.scalars)
    return *(None if value is None else grad for value, grad in zip(tensors, grads, strict=True)), *nothing


define(f"window_attention({_COMMON}, str backend) -> (Tensor, Tensor)", _forward, _forward_fake)
define(
    f"window_attention_backward(Tensor grad_out, Tensor? out, Tensor statistics, {_COMMON}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
differentiable("window_attention", _save, _differentiate)
differentiable_again("window_attention_backward", 3, lambda *args: reference.attend(_call(args[:-1])))


def _example(device: torch.device) -> dict[str, Any]:
    """A shifted Swin-T block, as small as it gets."""
    qkv, table = torch.zeros(1, 14, 14, 288, device=device), torch.zeros(169, 3, device=device)
    return {"qkv": qkv, "bias_table": table, "num_heads": 3, "window_size": 7, "shift_size": 3}


# the seed changes no backend's answer: given, none is drawn from the caller's generator
OP.explains(window_attention, lambda **arguments: _call(_prepare(**arguments | {"seed": arguments["seed"] or 0})[:-1]), _example)
