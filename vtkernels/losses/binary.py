"""Binary cross-entropy over classes, after timm, and DeiT III's pair of sub-networks trained with it."""

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.losses._input import check_target, class_logits, class_weights, computed, existing, is_soft, may_look, number, reduced
from vtkernels.losses._module import Loss

_TRAP = "every class would be positive"


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    smoothing: float = 0.1,
    target_threshold: float | None = None,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    sum_classes: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """-t ln s(z) - (1 - t) ln(1 - s(z)) for each class with s the sigmoid: timm's BCE.

    Args:
        logits: [B, K].
        target: [B] int64 classes, which are smoothed (1 - eps + eps / K and eps / K); or numbers [B, K], taken as they are.
        smoothing: eps, for classes only.
        target_threshold: targets above it become 1, the others 0. Smoothed targets are all above 0: DeiT III's threshold of 0 goes
            with smoothing 0 alone. Together they are refused for classes, and warned of for numbers (on a CPU).
        weight, pos_weight: [K] factors of the classes, of the whole and of its first term.
        sum_classes: sum over classes and mean over the batch, K times the mean over all; it goes with reduction="mean".
        reduction: mean, sum or none ([B, K]).
    """
    name = "binary_cross_entropy"
    x = class_logits(name, logits)
    check_target(name, target, logits)
    number(name, "smoothing", smoothing, 0.0, 1.0, "0.1 is usual, 0 switches it off")
    if sum_classes and reduction != "mean":
        check.fail(name, "reduction", "be mean with sum_classes=True", repr(reduction), "sum the losses of reduction='none' yourself")
    weight, pos_weight = class_weights(name, weight, x), class_weights(name, pos_weight, x, "pos_weight")
    t = target.to(x.dtype) if is_soft(target) else _smoothed(name, target, x, smoothing, target_threshold)
    if target_threshold is not None:
        if is_soft(target):
            _warn_of_trap(name, t, target_threshold)
        # a class that does not exist stays NaN
        t = (t > target_threshold).to(t.dtype).masked_fill(t.isnan(), torch.nan)
    losses = _from_logits(x, t, pos_weight)
    if weight is not None:
        losses = losses * weight
    return reduced(name, losses.sum(1) if sum_classes else losses, reduction)


def _smoothed(name: str, target: Tensor, x: Tensor, smoothing: float, threshold: float | None) -> Tensor:
    classes = x.shape[1]
    off = smoothing / classes
    if threshold is not None and classes > 1 and smoothing > 0 and off > threshold:
        got = f"{threshold} with smoothing={smoothing} and {classes} classes"
        check.fail(name, "target_threshold", f"be at least {off:g} where classes are smoothed, else {_TRAP}", got, "DeiT III has smoothing=0")
    index, _, wrong = existing(name, target, classes)
    smooth = torch.full_like(x, off).scatter(1, index[:, None], 1.0 - smoothing + off)
    return smooth.masked_fill(wrong[:, None], torch.nan)


def _warn_of_trap(name: str, target: Tensor, threshold: float) -> None:
    if not may_look(target) or not target.numel():
        return
    low, high = target.aminmax(dim=1)
    if ((low > threshold) & (low < high)).all():
        message = f"{name}: all targets lie above target_threshold={threshold}: {_TRAP}; were they smoothed before? Try smoothing=0 where they are mixed"
        warnings.warn(message, stacklevel=3)


def _from_logits(x: Tensor, t: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    if pos_weight is None:
        # one logarithm instead of two
        return -F.logsigmoid(x) + (1.0 - t) * x
    return -(pos_weight * t * F.logsigmoid(x) + (1.0 - t) * F.logsigmoid(-x))


class BinaryCrossEntropy(Loss):
    """`binary_cross_entropy` as a module; the weights are buffers."""

    function = staticmethod(binary_cross_entropy)


def cosub_loss(first: Tensor, second: Tensor, target: Tensor) -> Tensor:
    """DeiT's cooperative loss of two random sub-networks on the same batch: the mean of four binary cross-entropies, of each with the
    targets and of each with the other's probabilities, which have no gradient.

    Args:
        first, second: [B, K] logits of the same images in two passes, with other branches dropped in each.
        target: [B] classes, or [B, K] numbers.
    """
    name = "cosub_loss"
    a, b = class_logits(name, first, "first"), class_logits(name, second, "second")
    check.check_shape(name, "second", second, tuple(first.shape), "logits of the same images")
    given = [binary_cross_entropy(x, _as_computed(target), smoothing=0.0) for x in (a, b)]
    each_other = [_from_logits(x, other.detach().sigmoid()) for x, other in ((a, b), (b, a))]
    return (sum(given) + sum(reduced(name, losses, "mean") for losses in each_other)) / 4.0


def _as_computed(target: Tensor) -> Tensor:
    return computed(target) if isinstance(target, Tensor) and target.is_floating_point() else target


class CosubLoss(Loss):
    """`cosub_loss` as a module."""

    function = staticmethod(cosub_loss)
