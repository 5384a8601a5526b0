"""FixMatch: what a model is sure of in a weakly augmented view is the target of a strongly augmented one."""

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.losses._input import class_logits, number
from vtkernels.losses._module import Loss
from vtkernels.losses.categorical import cross_entropy


def fixmatch_loss(labelled: Tensor, target: Tensor, weak: Tensor, strong: Tensor, *, threshold: float = 0.95, weight: float = 1.0) -> Tensor:
    """Cross-entropy of labelled images + weight / U times that of the U strong views whose weak view is sure, with its best class.

    Args:
        labelled, target: [B, K] logits and [B] classes (or probabilities).
        weak, strong: [U, K] logits of two views of each unlabelled image. The weak ones have no gradient.
        threshold: probability from which on a weak view is sure.
        weight: the paper's lambda_u.
    """
    name = "fixmatch_loss"
    sure, best = confident_classes(weak, threshold)
    strong = class_logits(name, strong, "strong")
    if strong.shape != weak.shape:
        check.fail(name, "strong", f"have the shape of weak {list(weak.shape)}", list(strong.shape), "give two views of each image")
    number(name, "weight", weight, 0.0, hint="1 is usual")
    known = cross_entropy(labelled, target)
    chosen = -strong.log_softmax(1).gather(1, best[:, None])[:, 0]
    # over all images: where few are sure, little is learnt from them
    return known + weight * (chosen * sure).sum() / max(len(weak), 1)


class FixMatchLoss(Loss):
    """`fixmatch_loss` as a module."""

    function = staticmethod(fixmatch_loss)


def confident_classes(weak: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """(bool [U], int64 [U]): whether the best class of logits [U, K] has this probability, and which it is."""
    logits = class_logits("fixmatch_loss", weak.detach(), "weak")
    number("fixmatch_loss", "threshold", threshold, 0.0, 1.0, hint="0.95 is usual")
    confidence, best = torch.softmax(logits, 1).max(1)
    return confidence >= threshold, best
