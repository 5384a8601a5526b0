"""Gaussian class-conditional simplex: outputs of each class are drawn to a Gaussian around a corner of a simplex."""

import math

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.layers.autocast import without_autocast
from vtkernels.losses._input import check_classes, class_logits, existing, may_look, number, one_of
from vtkernels.losses._module import Loss

_LEAST_VARIANCE = 1e-6


def gccs_loss(outputs: Tensor, target: Tensor, *, mean: float = 70.0, variance: float = 1.0, kurtosis_weight: float = 0.2, covariance: str = "full") -> Tensor:
    """Twice the divergence of each class's outputs, as a Gaussian, from N(mean e_i, variance I), + kurtosis_weight (kurtosis - 3), summed
    over the classes of the batch.

    With m and S the mean and covariance of the outputs of class i, the divergence is -ln |S / variance| - K + tr S / variance +
    |mean e_i - m|^2 / variance. Outputs are not passed through a softmax; the class is the largest output. The constants are to be tuned.

    Args:
        outputs: [B, K]. target: [B] int64 classes, of which those in the batch need more samples than K, or two for "diagonal": fewer
            raise on a CPU, and are NaN on a GPU.
        mean: distance of the corners from the origin; any two are sqrt(2) times that apart.
        variance: of the target in each direction, sigma_T^2.
        kurtosis_weight: of the mean over outputs of m4 / m2^2, which keeps tails those of a Gaussian; 0 is without.
        covariance: full, or diagonal for many classes. Divided by n - 1; variances below 1e-6 count as that.
    """
    name = "gccs_loss"
    x = class_logits(name, outputs, "outputs")
    check_classes(name, target, x, of="outputs")
    number(name, "mean", mean, hint="some tens are usual")
    number(name, "variance", variance, low_counts=False, hint="1 is usual")
    number(name, "kurtosis_weight", kurtosis_weight, hint="0.2 is usual, 0 is without")
    one_of(name, "covariance", covariance, ("full", "diagonal"), "diagonal needs two samples of a class, full more than there are classes")
    classes = x.shape[1]
    index, _, wrong = existing(name, target, classes)
    sizes = x.new_zeros(classes).index_add(0, index, torch.ones_like(x[:, 0]))
    enough = _check_sizes(name, sizes, 2 if covariance == "diagonal" else classes + 1, covariance)

    none, shares = x.new_zeros(classes, classes), sizes.clamp(min=1)[:, None]
    means = none.index_add(0, index, x) / shares
    d = x - means[index]
    second = none.index_add(0, index, d.square())
    variances = second / (sizes - 1).clamp(min=1)[:, None]
    if covariance == "diagonal":
        log_det = (variances.clamp(min=_LEAST_VARIANCE) / variance).log().sum(1)
        trace = variances.clamp(min=_LEAST_VARIANCE).sum(1)
    else:
        log_det = _log_determinants(d, index, sizes, variance)
        trace = variances.sum(1)
    corners = mean * torch.eye(classes, dtype=x.dtype, device=x.device)
    losses = -log_det - classes + (trace + (corners - means).square().sum(1)) / variance
    if kurtosis_weight:
        fourth = none.index_add(0, index, d**4) / shares
        kurtosis = (fourth / (second / shares).clamp(min=_LEAST_VARIANCE).square()).mean(1)
        losses = losses + kurtosis_weight * (kurtosis - 3.0)
    losses = losses.masked_fill(~enough, math.nan).masked_fill(sizes == 0, 0.0)
    return losses.sum().masked_fill(wrong.any(), math.nan)


def _check_sizes(name: str, sizes: Tensor, least: int, covariance: str) -> Tensor:
    enough = sizes >= least
    if may_look(sizes) and ((sizes > 0) & ~enough).any():
        few = ((sizes > 0) & ~enough).nonzero()[0, 0].item()
        hint = "covariance='diagonal' needs two" if covariance == "full" else "draw batches with several samples of each class"
        check.fail(name, f"class {few}", f"have at least {least} samples in the batch for covariance={covariance!r}", int(sizes[few]), hint)
    return enough


def _log_determinants(d: Tensor, index: Tensor, sizes: Tensor, variance: float) -> Tensor:
    """ln |S / variance| for each class, eigenvalues below the least counted as that; of absent classes 0."""
    classes = d.shape[1]
    own = torch.zeros_like(d).scatter(1, index[:, None], 1.0).T[:, :, None] * d
    with without_autocast(d):
        covariances = own.transpose(1, 2) @ own / (sizes - 1).clamp(min=1)[:, None, None]
    # no eigenvalues are asked of NaN, which the means already hand on
    usable = (sizes > 1) & covariances.isfinite().all(2).all(1)
    covariances = torch.where(usable[:, None, None], covariances, torch.eye(classes, dtype=d.dtype, device=d.device))
    values = torch.linalg.eigvalsh(covariances)
    return (values.clamp(min=_LEAST_VARIANCE) / variance).log().sum(1)


class GccsLoss(Loss):
    """`gccs_loss` as a module."""

    function = staticmethod(gccs_loss)
