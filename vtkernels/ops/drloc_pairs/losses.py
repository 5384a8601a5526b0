"""The three losses of dense relative localisation, in float32 at least, whatever dtype the predictions have."""

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_VARIANCE_WEIGHT = 0.001
SMALLEST_VARIANCE = 1e-8


def l1(prediction: Tensor, targets: Tensor, *, mean_of_coordinates: bool = False) -> Tensor:
    """[..., 2] both: the mean over pairs of the sum over the two coordinates; or the mean over all numbers, half of it."""
    error = (_wide(prediction) - targets).abs()
    return error.mean() if mean_of_coordinates else error.sum(-1).mean()


def ce(logits: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Cross-entropy of each axis, [..., K] against the classes [..., axis], and their sum. Targets are cut to integers."""
    classes = targets.long()
    return sum(F.cross_entropy(_wide(axis).flatten(0, -2), classes[..., i].flatten()) for i, axis in enumerate(logits))


def cbr(logits: tuple[Tensor, Tensor], targets: Tensor, *, variance: bool = True) -> Tensor:
    """Cycle-back regression: the softmax's mean against the target, weighed by its variance (or not), summed over the axes."""
    return sum(_cbr(_wide(axis), targets[..., i], variance) for i, axis in enumerate(logits))


def _cbr(logits: Tensor, target: Tensor, variance: bool) -> Tensor:
    place = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    weight = logits.softmax(-1)
    mean = (place * weight).sum(-1)
    error = (mean - target).square()
    if not variance:
        return error.mean()
    log_variance = (((place - mean[..., None]).square() * weight).sum(-1) + SMALLEST_VARIANCE).log()
    return ((-log_variance).exp() * error + LOG_VARIANCE_WEIGHT * log_variance).mean()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
