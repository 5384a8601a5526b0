"""Label smoothing, whose conventions disagree: the caller names one."""

from typing import NamedTuple

import torch
from torch import Tensor

from vtkernels.losses._input import check_target, class_logits, existing, is_soft, number, one_of, reduced
from vtkernels.losses._module import Loss


class Convention(NamedTuple):
    """What becomes of a target: 1 turns into `on`, 0 into `off`, and the entropy of the target is subtracted or not."""

    on: float
    off: float
    less_entropy: bool = False


def label_smoothing_convention(convention: str, smoothing: float, num_classes: int) -> Convention:
    """The values for eps = smoothing and K classes.

    szegedy, timm_mixup and tensorflow are the same numbers under three names: 1 - eps + eps / K and eps / K, with sum 1. timm smooths
    before it mixes, which is the same as smoothing the mixture. davda54 spreads eps over the other classes only, eps / (K - 1), and
    subtracts the entropy of that target, so that the least loss is 0. thuml has 1 - eps and eps / K, whose sum is 1 - eps / K.
    """
    op, uniform = "label_smoothing_convention", smoothing / num_classes
    one_of(op, "convention", convention, CONVENTIONS)
    if convention == "davda54":
        # one class has no others to give to
        return Convention(1.0 - smoothing, smoothing / (num_classes - 1), True) if num_classes > 1 else Convention(1.0, 0.0, True)
    if convention == "thuml":
        return Convention(1.0 - smoothing, uniform)
    return Convention(1.0 - smoothing + uniform, uniform)


CONVENTIONS = ("szegedy", "timm_mixup", "tensorflow", "davda54", "thuml")


def label_smoothing_cross_entropy(
    logits: Tensor, target: Tensor, *, smoothing: float = 0.1, convention: str = "szegedy", ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy with smoothed targets; which smoothing, `convention` says: see `label_smoothing_convention`.

    Probabilities are smoothed as classes are: off + (on - off) t. The other arguments are those of `cross_entropy`.
    """
    name = "label_smoothing_cross_entropy"
    x = class_logits(name, logits)
    check_target(name, target, logits)
    number(name, "smoothing", smoothing, 0.0, 1.0, "0.1 is usual, 0 switches it off")
    on, off, less_entropy = label_smoothing_convention(convention, smoothing, x.shape[1])
    log_p = x.log_softmax(1)
    if is_soft(target):
        smooth, counts = off + (on - off) * target.to(x.dtype), x.new_ones(len(x))
        terms = smooth * -log_p + (torch.xlogy(smooth, smooth) if less_entropy else 0.0)
        return reduced(name, terms.masked_fill((smooth == 0) & log_p.isinf(), 0.0).sum(1), reduction, counts)
    index, counts, wrong = existing(name, target, x.shape[1], ignore_index)
    losses = -(on - off) * log_p.gather(1, index[:, None])[:, 0]
    if off:
        losses = losses - off * log_p.sum(1)
    if less_entropy:
        weights = x.new_tensor([on, off])
        losses = losses + (torch.xlogy(weights, weights) * x.new_tensor([1, x.shape[1] - 1])).sum()
    losses = losses.masked_fill(~counts, 0.0).masked_fill(wrong, torch.nan)
    return reduced(name, losses, reduction, counts.to(x.dtype))


class LabelSmoothingCrossEntropy(Loss):
    """`label_smoothing_cross_entropy` as a module."""

    function = staticmethod(label_smoothing_cross_entropy)
