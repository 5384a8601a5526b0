"""Jensen-Shannon consistency and the AugMix loss: the public functions, their schemas, and their place in autograd."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check, env
from vtkernels._core.op import Op, define, differentiable, differentiable_again, of_many, undispatched, watched
from vtkernels.ops.jsd import reference
from vtkernels.ops.jsd.common import Call, loss_dtype, loss_shape, target_gradient

_HERE = "vtkernels.ops.jsd"
_BACKENDS = {"triton": f"{_HERE}.triton", "cpu": f"{_HERE}.native", "reference": f"{_HERE}.reference"}
CONSISTENCY = Op("jsd_consistency", _BACKENDS)
AUGMIX = Op("augmix_loss", _BACKENDS)
_REDUCTIONS = ("batchmean", "sum", "none")


def jsd_consistency(
    logits: Tensor, *, num_views: int = 3, weights: Sequence[float] | None = None, reduction: str = "batchmean", backend: str = "auto"
) -> Tensor:
    """Jensen-Shannon divergence between the predictions for several views of each sample: 0 where they agree, at most ln(views).

    With p_v = softmax(logits of view v) and m = clamp(sum w_v p_v, 1e-7, 1): sum_v w_v KL(p_v || m), in natural logarithms. The
    mixture is not detached. Half-precision logits are computed in float32, and so is the loss; autocast casts nothing.

    Args:
        logits: [V * B, K], all samples of the first view first.
        num_views: V, at least 2.
        weights: of the views, not negative, with sum 1; default 1 / V each.
        reduction: batchmean (divide by B, and by nothing else), sum, or none. The mean over no sample is 0.
        backend: auto, triton, cpu or reference.

    Returns:
        A number, or [B] for reduction="none".
    """
    given = (logits, num_views, weights, reduction, backend)
    if watched(logits):
        return torch.ops.vtkernels.jsd_consistency.default(*_prepare_consistency(*given))[0]
    weighed = tuple(weights) if isinstance(weights, list) else weights
    key = (CONSISTENCY.name, logits.shape, logits.dtype, logits.device, type(num_views), num_views, weighed, reduction, backend, env.default_backend())
    launch, writes = _remembered(key) or _remember(key, CONSISTENCY, _prepare_consistency(*given), reduction != "none")
    if weights is None:
        weights = (1.0 / num_views,) * num_views
    with_gradient = writes and logits.requires_grad and torch.is_grad_enabled()
    call = Call(logits, None, num_views, tuple(weights), 1.0, 0.0, reduction)
    return _consistency(lambda: launch(call, with_gradient), (num_views, weights, reduction, with_gradient, backend), logits)


def augmix_loss(logits: Tensor, target: Tensor, *, num_views: int = 3, weight: float = 12.0, label_smoothing: float = 0.0, backend: str = "auto") -> Tensor:
    """AugMix's loss: the cross-entropy of the clean view, plus `weight` times the consistency of all views (see `jsd_consistency`).

    Args:
        logits: [V * B, K], the clean view's samples first.
        target: [B] int64 classes, or [B, K] probabilities (which are not normalised, and get a gradient if they want one).
            A class that does not exist raises on a CPU; on a GPU, where looking would mean waiting, the loss is NaN.
        num_views: V, at least 2.
        weight: of the consistency.
        label_smoothing: in [0, 1]; every class gets its share of it.
        backend: auto, triton, cpu or reference.

    Returns:
        A number: the mean over the batch, 0 for no sample.
    """
    given = (logits, target, num_views, weight, label_smoothing, backend)
    if watched(logits, target):
        return torch.ops.vtkernels.augmix_loss.default(*_prepare_augmix(*given))[0]
    of_target = (target.shape, target.dtype, target.device)
    key = (logits.shape, logits.dtype, logits.device, *of_target, type(num_views), num_views, weight, label_smoothing, backend, env.default_backend())
    launch, writes = _remembered(key) or _remember(key, AUGMIX, _prepare_augmix(*given), True)
    with_gradient = writes and logits.requires_grad and torch.is_grad_enabled() and not target.requires_grad
    call = Call(logits, target, num_views, (1.0 / num_views,) * num_views, weight, label_smoothing, "batchmean")
    return _augmix(lambda: launch(call, with_gradient), (num_views, weight, label_smoothing, with_gradient, backend), logits, target)


# For calls like earlier ones, which need not be checked again, nor the backends asked: the forward of the backend that runs them, and
# whether it may write the gradient.
_Known = tuple[Callable[..., Any], bool]
_KNOWN: dict[tuple[Any, ...], _Known] = {}


def _remembered(key: tuple[Any, ...]) -> _Known | None:
    try:
        return _KNOWN.get(key)
    except TypeError:
        # what cannot be hashed cannot be right, and will be named
        return None


def _remember(key: tuple[Any, ...], op: Op, arguments: tuple[Any, ...], may_write: bool) -> _Known:
    *arguments, _, backend = arguments
    if len(_KNOWN) >= 1024:
        _KNOWN.clear()
    # not read back: another thread may clear all meanwhile
    known = _KNOWN[key] = op.select("forward", backend, _CALLS[op.name](*arguments)), may_write and _writes_gradients(arguments[0])
    return known


def _prepare_consistency(logits, num_views, weights, reduction, backend) -> tuple[Any, ...]:
    name = CONSISTENCY.name
    _check_logits(name, logits, num_views)
    if reduction not in _REDUCTIONS:
        check.fail(name, "reduction", f"be one of {', '.join(_REDUCTIONS)}", repr(reduction), "batchmean is that of the published losses")
    CONSISTENCY.check_name(backend)
    weights = [1.0 / num_views] * num_views if weights is None else _checked_weights(name, weights, num_views)
    return logits, num_views, weights, reduction, reduction != "none" and _worth_a_gradient(logits), backend


def _prepare_augmix(logits, target, num_views, weight, label_smoothing, backend) -> tuple[Any, ...]:
    name = AUGMIX.name
    _check_logits(name, logits, num_views)
    _check_target(name, target, logits, num_views)
    if not isinstance(weight, (int, float)) or not 0.0 <= weight < math.inf:
        check.fail(name, "weight", "be a finite number, not negative", repr(weight), "AugMix uses 12")
    if not isinstance(label_smoothing, (int, float)) or not 0.0 <= label_smoothing <= 1.0:
        check.fail(name, "label_smoothing", "lie in [0, 1]", repr(label_smoothing), "0.1 is usual, 0 switches it off")
    AUGMIX.check_name(backend)
    return logits, target, num_views, float(weight), float(label_smoothing), _worth_a_gradient(logits) and not target.requires_grad, backend


def _worth_a_gradient(logits: Tensor) -> bool:
    return torch.is_grad_enabled() and logits.requires_grad and not torch.compiler.is_compiling() and _writes_gradients(logits)


def _writes_gradients(logits: Tensor) -> bool:
    """Whether the forward should write the gradient too, while all it takes is in the cache, and the backward hand it over.

    Not on a GPU, where the upstream gradient would have to be applied in a pass of its own; not in float16, where it underflows
    before a GradScaler's factor comes; nor while tracing, where a graph cannot know that the factor is 1.
    """
    return logits.device.type == "cpu" and logits.dtype != torch.float16


def _check_logits(name: str, logits: Any, num_views: Any) -> None:
    check.check_tensor(name, "logits", logits, 2, "[views * batch, classes]")
    check.check_floating(name, "logits", logits)
    if not isinstance(num_views, int) or isinstance(num_views, bool) or num_views < 2:
        check.fail(name, "num_views", "be an int of at least 2", repr(num_views), "with one view there is nothing to be consistent with")
    rows, classes = logits.shape
    if classes < 1:
        check.fail(name, "logits", "have at least one class", list(logits.shape), "only the batch may be empty")
    if rows % num_views:
        check.fail(name, "the rows of logits", f"be a multiple of num_views={num_views}", rows, "try torch.cat of one batch for each view")


def _checked_weights(name: str, weights: Any, num_views: int) -> list[float]:
    if isinstance(weights, Tensor) or not isinstance(weights, Sequence) or not all(isinstance(weight, (int, float)) for weight in weights):
        check.fail(name, "weights", "be a sequence of floats", type(weights).__name__, "of a tensor: weights.tolist()", TypeError)
    weights = [float(weight) for weight in weights]
    if len(weights) != num_views:
        check.fail(name, "weights", f"have one number for each of {num_views} views", len(weights), "None weighs all views alike")
    if not all(0.0 <= weight < math.inf for weight in weights) or abs(sum(weights) - 1.0) > 1e-6:
        check.fail(name, "weights", "not be negative and sum to 1", weights, "divide them by their sum")
    return weights


def _check_target(name: str, target: Any, logits: Tensor, num_views: int) -> None:
    batch, classes = logits.shape[0] // num_views, logits.shape[1]
    check.check_tensor(name, "target", target)
    if target.is_floating_point():
        check.check_shape(name, "target", target, (batch, classes), "probabilities of the clean view's samples only; classes must be int64")
        return check.check_companion(name, "target", target, "logits", logits)
    if target.dtype != torch.int64:
        check.fail(name, "target", "have dtype int64 (classes) or a floating one (probabilities)", target.dtype, "try target.long()", TypeError)
    hint = f"targets of the clean view only: try target[:{batch}]" if target.dim() == 1 else "one class for each sample, or floating probabilities"
    check.check_shape(name, "target", target, (batch,), hint)
    if target.device != logits.device:
        check.fail(name, "target", f"be on the device of logits ({logits.device})", target.device, "try target.to(logits.device)")


def _call_of_consistency(logits, num_views, weights, reduction) -> Call:
    return Call(logits, None, num_views, tuple(weights), 1.0, 0.0, reduction)


def _call_of_augmix(logits, target, num_views, weight, label_smoothing) -> Call:
    return Call(logits, target, num_views, (1.0 / num_views,) * num_views, weight, label_smoothing, "batchmean")


_CALLS = {CONSISTENCY.name: _call_of_consistency, AUGMIX.name: _call_of_augmix}


def _consistency_forward(logits, num_views, weights, reduction, with_gradient, backend) -> tuple[Tensor, Tensor]:
    call = _call_of_consistency(logits, num_views, weights, reduction)
    return CONSISTENCY.select("forward", backend, call)(call, with_gradient)


def _augmix_forward(logits, target, num_views, weight, label_smoothing, with_gradient, backend) -> tuple[Tensor, Tensor]:
    call = _call_of_augmix(logits, target, num_views, weight, label_smoothing)
    return AUGMIX.select("forward", backend, call)(call, with_gradient)


def _forward_fake(call: Call, with_gradient: bool) -> tuple[Tensor, Tensor]:
    loss = call.logits.new_empty(loss_shape(call), dtype=loss_dtype(call.logits))
    return loss, call.logits.new_empty(call.logits.shape if with_gradient else (0,))


def _augmix_backward(grad_loss, logits, target, num_views, weight, label_smoothing, for_target, backend) -> tuple[Tensor, Tensor]:
    call = _call_of_augmix(logits, target, num_views, weight, label_smoothing)
    d_logits = AUGMIX.select("backward", backend, call)(call, grad_loss)
    # schemas have no optional outputs: an absent gradient is empty
    return d_logits, target_gradient(call, grad_loss) if for_target else logits.new_empty(0)


def _augmix_backward_fake(grad_loss, logits, target, num_views, weight, label_smoothing, for_target, backend) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape), target.new_empty(target.shape) if for_target else logits.new_empty(0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    gradient = output[1]
    # not among the saved tensors, which autograd would share with whoever gets the gradient
    ctx.gradient = gradient if gradient.numel() else None
    ctx.mark_non_differentiable(gradient)
    ctx.set_materialize_grads(False)


def _save_consistency(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _save(ctx, inputs, output)
    ctx.save_for_backward(inputs[0])
    ctx.scalars = *inputs[1:4], inputs[5]


def _save_augmix(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _save(ctx, inputs, output)
    ctx.save_for_backward(*inputs[:2])
    ctx.scalars, ctx.backend = inputs[2:5], inputs[6]


def _written_gradient(ctx: Any, grad_loss: Tensor) -> Tensor | None:
    """The forward's gradient, times that of the loss: given away, to be owned and changed by others. A second backward computes its own.

    None where there is none, or where the backward must show as an op: to a second differentiation, to a mode that records, or to many gradients at once.
    """
    gradient, ctx.gradient = ctx.gradient, None
    if gradient is None or torch.is_grad_enabled() or type(grad_loss) is not Tensor or torch._C._len_torch_dispatch_stack() or of_many(grad_loss):
        return None
    return gradient if grad_loss.item() == 1.0 else gradient.mul_(grad_loss)


def _differentiate_consistency(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    d_logits = None
    if grad_loss is not None:
        d_logits = _written_gradient(ctx, grad_loss)
        if d_logits is None:
            d_logits = torch.ops.vtkernels.jsd_consistency_backward.default(grad_loss, *ctx.saved_tensors, *ctx.scalars)
    return d_logits, None, None, None, None, None


def _differentiate_augmix(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    d_logits = d_target = None
    if grad_loss is not None:
        d_logits = _written_gradient(ctx, grad_loss)
        if d_logits is None:
            for_target = ctx.needs_input_grad[1]
            d_logits, d_target = torch.ops.vtkernels.augmix_loss_backward.default(grad_loss, *ctx.saved_tensors, *ctx.scalars, for_target, ctx.backend)
            d_target = d_target if for_target else None
    return d_logits, d_target, None, None, None, None, None


_CONSISTENCY = "int num_views, float[] weights, str reduction"
_AUGMIX = "int num_views, float weight, float label_smoothing"
define(
    f"jsd_consistency(Tensor logits, {_CONSISTENCY}, bool with_gradient, str backend) -> (Tensor, Tensor)",
    _consistency_forward,
    lambda *args: _forward_fake(_call_of_consistency(*args[:4]), args[4]),
)
define(
    f"jsd_consistency_backward(Tensor grad_loss, Tensor logits, {_CONSISTENCY}, str backend) -> Tensor",
    lambda grad_loss, *args: CONSISTENCY.select("backward", args[4], call := _call_of_consistency(*args[:4]))(call, grad_loss),
    lambda grad_loss, logits, *args: logits.new_empty(logits.shape),
)
define(
    f"augmix_loss(Tensor logits, Tensor target, {_AUGMIX}, bool with_gradient, str backend) -> (Tensor, Tensor)",
    _augmix_forward,
    lambda *args: _forward_fake(_call_of_augmix(*args[:5]), args[5]),
)
define(
    f"augmix_loss_backward(Tensor grad_loss, Tensor logits, Tensor target, {_AUGMIX}, bool for_target, str backend) -> (Tensor, Tensor)",
    _augmix_backward,
    _augmix_backward_fake,
)
differentiable("jsd_consistency", _save_consistency, _differentiate_consistency)
differentiable("augmix_loss", _save_augmix, _differentiate_augmix)
_consistency = undispatched(1, _save_consistency, _differentiate_consistency)
_augmix = undispatched(2, _save_augmix, _differentiate_augmix)
differentiable_again("jsd_consistency_backward", 1, lambda *args: reference.reduced(_call_of_consistency(*args[:4])))
differentiable_again("augmix_loss_backward", 1, lambda *args: reference.reduced(_call_of_augmix(*args[:5])))


def _example(device: torch.device) -> dict[str, Any]:
    """Three views of two images of CIFAR-10."""
    return {"logits": torch.zeros(6, 10, device=device)}


CONSISTENCY.explains(jsd_consistency, lambda **arguments: _call_of_consistency(*_prepare_consistency(**arguments)[:4]), _example)
AUGMIX.explains(
    augmix_loss,
    lambda **arguments: _call_of_augmix(*_prepare_augmix(**arguments)[:5]),
    lambda device: _example(device) | {"target": torch.zeros(2, dtype=torch.int64, device=device)},
)
