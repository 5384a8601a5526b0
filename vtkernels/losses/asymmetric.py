"""Asymmetric losses: easy negatives fade faster than positives."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.losses._input import check_probabilities, check_target, class_logits, computed, existing, is_soft, number, one_of, reduced
from vtkernels.losses._module import Loss


def asymmetric_multi_label_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    margin: float = 0.05,
    detach_focus: bool = False,
    reduction: str = "sum",
) -> Tensor:
    """The asymmetric loss for images with several labels: easy negatives fade by a larger power than positives do.

    With s the sigmoid and q = min(1 - s + margin, 1): -(1 - p_t)^gamma (t ln s + (1 - t) ln q), where p_t is s of positives and q of
    negatives; logarithms stop at 1e-8.

    Args:
        logits: any shape. target: 0 or 1 (or between), of the same shape.
        margin: negatives below this probability cost nothing.
        detach_focus: whether the factor (1 - p_t)^gamma is taken as a constant.
        reduction: sum over everything, as published; batchmean (that divided by the first axis, as timm has it now); mean; none.
    """
    name = "asymmetric_multi_label_loss"
    one_of(name, "reduction", reduction, ("sum", "batchmean", "mean", "none"), "sum is that of the paper")
    check.check_tensor(name, "logits", logits)
    check.check_floating(name, "logits", logits)
    check.check_tensor(name, "target", target)
    check_probabilities(name, "target", target, "logits", logits)
    _check_gammas(name, gamma_negative, gamma_positive)
    number(name, "margin", margin, 0.0, 1.0, "0.05 is usual, 0 is without")
    x = computed(logits)
    t = target.to(x.dtype)
    yes, no = x.sigmoid(), ((-x).sigmoid() + margin).clamp(max=1.0)
    losses = -(t * yes.clamp(min=1e-8).log() + (1.0 - t) * no.clamp(min=1e-8).log())
    losses = losses * _focus(1.0 - yes * t - no * (1.0 - t), t, gamma_positive, gamma_negative, detach_focus)
    if reduction == "batchmean":
        return losses.sum() / max(len(losses), 1)
    return reduced(name, losses, reduction)


class AsymmetricMultiLabelLoss(Loss):
    """`asymmetric_multi_label_loss` as a module."""

    function = staticmethod(asymmetric_multi_label_loss)


def asymmetric_single_label_loss(
    logits: Tensor, target: Tensor, *, gamma_negative: float = 4.0, gamma_positive: float = 1.0, smoothing: float = 0.1, reduction: str = "mean"
) -> Tensor:
    """The asymmetric loss for one label: cross-entropy with smoothed targets, whose terms carry (1 - p_y)^gamma_positive for the class
    itself and p_i^gamma_negative for the others.

    Args:
        logits: [B, K]. target: [B] int64 classes, or [B, K] zeros and ones.
        smoothing: eps / K to every class.
        reduction: mean over the batch, sum, or none ([B]).
    """
    name = "asymmetric_single_label_loss"
    x = class_logits(name, logits)
    check_target(name, target, logits)
    _check_gammas(name, gamma_negative, gamma_positive)
    number(name, "smoothing", smoothing, 0.0, 1.0, "0.1 is usual, 0 switches it off")
    log_p = x.log_softmax(1)
    if is_soft(target):
        t = target.to(x.dtype)
    else:
        index, _, wrong = existing(name, target, x.shape[1])
        t = F.one_hot(index, x.shape[1]).to(x.dtype).masked_fill(wrong[:, None], torch.nan)
    p = log_p.exp()
    wrong_by = t * -torch.expm1(log_p) + (1.0 - t) * p
    smooth = t * (1.0 - smoothing) + smoothing / x.shape[1]
    return reduced(name, -(smooth * log_p * _focus(wrong_by, t, gamma_positive, gamma_negative)).sum(1), reduction)


class AsymmetricSingleLabelLoss(Loss):
    """`asymmetric_single_label_loss` as a module."""

    function = staticmethod(asymmetric_single_label_loss)


def _check_gammas(name: str, negative: float, positive: float) -> None:
    number(name, "gamma_negative", negative, hint="4 is usual")
    number(name, "gamma_positive", positive, hint="1 is usual")


def _focus(wrong_by: Tensor, t: Tensor, gamma_positive: float, gamma_negative: float, detach: bool = False) -> Tensor:
    # never quite 0, where a power below 1 has an infinite slope
    factor = wrong_by.clamp(min=torch.finfo(wrong_by.dtype).tiny) ** (gamma_positive * t + gamma_negative * (1.0 - t))
    return factor.detach() if detach else factor
