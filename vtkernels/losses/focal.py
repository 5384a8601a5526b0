"""Focal losses: samples that are already right cost less, by the power gamma of the doubt that is left."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.losses._input import (
    check_probabilities,
    check_target,
    class_logits,
    class_weights,
    computed,
    existing,
    expected,
    is_soft,
    number,
    one_of,
    reduced,
)
from vtkernels.losses._module import Loss


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """-alpha_y (1 - p_y)^gamma ln p_y with p = softmax(logits), for classification; of probabilities t, the sum over classes times t.

    Args:
        gamma: 0 is weighted cross-entropy; 1.5 and 2 are usual.
        alpha: [K] factors of the classes; None is without.
        reduction: mean (over the samples that count, whatever alpha is), sum or none.
        logits, target, ignore_index: as in `cross_entropy`.
    """
    name = "focal_loss"
    x = class_logits(name, logits)
    check_target(name, target, logits)
    number(name, "gamma", gamma, 0.0, hint="1.5 and 2 are usual")
    weight = class_weights(name, alpha, x, "alpha")
    losses, _ = expected(name, x.log_softmax(1), target, lambda log_p: -(_doubt(log_p) ** gamma) * log_p, ignore_index, weight)
    counts = torch.ones_like(losses) if is_soft(target) else (target != ignore_index).to(losses.dtype)
    return reduced(name, losses, reduction, counts)


def _doubt(log_p: Tensor) -> Tensor:
    """1 - p without cancellation, and never quite 0, where gamma below 1 has an infinite slope."""
    return (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)


class FocalLoss(Loss):
    """`focal_loss` as a module; `alpha` is a buffer."""

    function = staticmethod(focal_loss)


def sigmoid_focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float | None = 0.25, reduction: str = "positives") -> Tensor:
    """The focal loss of detectors: each class of each anchor is a yes or no of its own, yes weighed by alpha, no by 1 - alpha.

    Args:
        logits: [B, K] with classes, any shape with numbers.
        target: [B] int64 classes, -1 for background (no class), -2 for anchors to ignore; or numbers in [0, 1] like logits.
        alpha: None is without.
        reduction: positives (the sum divided by the number of positive anchors, by 1 if there are none; of numbers: by their sum),
            mean over all logits, sum, or none (like logits).
    """
    name = "sigmoid_focal_loss"
    one_of(name, "reduction", reduction, ("positives", "mean", "sum", "none"), "positives is that of the paper")
    number(name, "gamma", gamma, 0.0, hint="2 is usual")
    if alpha is not None:
        number(name, "alpha", alpha, 0.0, 1.0, "0.25 is usual, None is without")
    check.check_tensor(name, "target", target)
    if is_soft(target):
        check.check_tensor(name, "logits", logits)
        check.check_floating(name, "logits", logits)
        check_probabilities(name, "target", target, "logits", logits)
        x = computed(logits)
        yes = target.to(x.dtype)
        positives, count = yes.sum(), None
    else:
        x = class_logits(name, logits)
        check_target(name, target, logits)
        # background names no class either, but it counts
        index, named, wrong = existing(name, target.masked_fill(target == -1, -2), x.shape[1], -2)
        yes = torch.zeros_like(x).scatter(1, index[:, None], named.to(x.dtype)[:, None])
        ignored = (target == -2)[:, None].expand_as(x)
        positives, count = named.sum().to(x.dtype), (~ignored).to(x.dtype)
    wrong_by = yes * (-x).sigmoid() + (1.0 - yes) * x.sigmoid()
    losses = -(yes * F.logsigmoid(x) + (1.0 - yes) * F.logsigmoid(-x)) * wrong_by.clamp(min=torch.finfo(x.dtype).tiny) ** gamma
    if alpha is not None:
        losses = losses * (alpha * yes + (1.0 - alpha) * (1.0 - yes))
    if count is not None:
        losses = losses.masked_fill(ignored, 0.0).masked_fill(wrong[:, None], math.nan)
    if reduction == "positives":
        return losses.sum() / positives.detach().clamp(min=1.0)
    return reduced(name, losses, reduction, count)


class SigmoidFocalLoss(Loss):
    """`sigmoid_focal_loss` as a module."""

    function = staticmethod(sigmoid_focal_loss)


def focal_prior_bias(prior: float = 0.01) -> float:
    """The bias of a detector's last layer with which every class starts at probability `prior`, so that the many negatives start cheap."""
    if not isinstance(prior, float) or not 0.0 < prior < 1.0:
        check.fail("focal_prior_bias", "prior", "lie between 0 and 1", repr(prior), "RetinaNet starts at 0.01")
    return -math.log((1.0 - prior) / prior)
