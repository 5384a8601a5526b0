"""Cross-entropy, plain and with weights of the classes, for classes or probabilities."""

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.losses._input import check_target, class_logits, class_weights, expected, number, one_of, reduced
from vtkernels.losses._module import Loss


def cross_entropy(logits: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """-sum_i t_i ln p_i with p = softmax(logits), or -ln p_y for classes. Computed in float32 (float64 for float64), under autocast too.

    Args:
        logits: [B, K].
        target: [B] int64 classes, or [B, K] probabilities, which are not normalised. A class that does not exist raises on a CPU;
            on a GPU, where looking would mean waiting, the loss is NaN.
        ignore_index: a class that neither costs nor counts.
        reduction: mean over the samples that count (0 if none does), sum, or none.
    """
    name = "cross_entropy"
    x = class_logits(name, logits)
    check_target(name, target, logits)
    losses, count = expected(name, x.log_softmax(1), target, torch.neg, ignore_index)
    return reduced(name, losses, reduction, count)


class CrossEntropy(Loss):
    """`cross_entropy` as a module."""

    function = staticmethod(cross_entropy)


def soft_target_cross_entropy(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """-sum_i t_i ln p_i for numbers [B, K], as mixing and teachers give them: `cross_entropy` that refuses classes, so that no one is
    smoothed or mixed by half. Targets are not normalised: those that sum to s scale the loss and its gradient by s."""
    name = "soft_target_cross_entropy"
    check.check_tensor(name, "target", target, 2, "[batch, classes]")
    check.check_floating(name, "target", target)
    return cross_entropy(logits, target, reduction=reduction)


class SoftTargetCrossEntropy(Loss):
    """`soft_target_cross_entropy` as a module."""

    function = staticmethod(soft_target_cross_entropy)


def balanced_cross_entropy(
    logits: Tensor, target: Tensor, *, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "weighted_mean"
) -> Tensor:
    """-alpha_y ln p_y, or -sum_i alpha_i t_i ln p_i: rare classes weigh more.

    Args:
        weight: [K] alpha, for example of `inverse_frequency_weights`; None weighs all classes alike.
        reduction: weighted_mean divides by the sum of the weights of the targets, as torch does; mean by the number of samples, as the
            textbook formula does, so that the weights' size sets the size of the loss; sum; none.
        logits, target, ignore_index: as in `cross_entropy`.
    """
    name = "balanced_cross_entropy"
    one_of(name, "reduction", reduction, ("weighted_mean", "mean", "sum", "none"))
    x = class_logits(name, logits)
    check_target(name, target, logits)
    alpha = x.new_ones(x.shape[1]) if weight is None else class_weights(name, weight, x)
    losses, count = expected(name, x.log_softmax(1), target, torch.neg, ignore_index, alpha)
    if reduction == "weighted_mean":
        return reduced(name, losses, "mean", count)
    counted = torch.ones_like(losses) if target.is_floating_point() else (target != ignore_index).to(losses.dtype)
    return reduced(name, losses, reduction, counted)


class BalancedCrossEntropy(Loss):
    """`balanced_cross_entropy` as a module; `weight` is a buffer."""

    function = staticmethod(balanced_cross_entropy)


def inverse_frequency_weights(counts: Tensor, *, mean_one: bool = False) -> Tensor:
    """N / (K n_c) for the numbers of samples n_c of K classes, N in all. `mean_one` scales them to a mean of one."""
    counts = _checked_counts("inverse_frequency_weights", counts)
    weights = counts.sum() / (len(counts) * counts)
    return weights / weights.mean() if mean_one else weights


def effective_number_weights(counts: Tensor, beta: float = 0.9999, *, mean_one: bool = False) -> Tensor:
    """(1 - beta) / (1 - beta^n_c): the inverse of the number of samples that are not repetitions. 1 for beta 0, towards 1 / n_c for 1."""
    name = "effective_number_weights"
    counts = _checked_counts(name, counts)
    number(name, "beta", beta, 0.0, 1.0, "the published values are 0.9 to 0.9999")
    if beta == 1.0:
        check.fail(name, "beta", "be below 1", beta, "inverse_frequency_weights is the limit")
    weights = (1.0 - beta) / (1.0 - beta**counts)
    return weights / weights.mean() if mean_one else weights


def _checked_counts(name: str, counts: Tensor) -> Tensor:
    counts = torch.as_tensor(counts, dtype=torch.float64)
    check.check_tensor(name, "counts", counts, 1, "[classes]")
    if not len(counts) or not (counts > 0).all() or not counts.isfinite().all():
        check.fail(name, "counts", "be at least one sample for each class", counts.tolist(), "a class without samples has no weight: leave it out")
    return counts
