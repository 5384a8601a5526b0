"""Sparse center loss (deep attentive center loss): an attention network says which channels of each sample must be near its centre."""

import math

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.losses._centers import ClassCenters, with_centers
from vtkernels.losses._input import check_probabilities, computed, one_of


def sparse_center_loss(features: Tensor, target: Tensor, centers: Tensor, attention: Tensor, *, reduction: str = "mean") -> Tensor:
    """sum_ij A_ij (x_ij - c_{y_i, j})^2 / 2, divided by B for reduction="mean"; differentiable in all three, the attention included.

    Args:
        features, attention: [B, D]. target: [B] int64 classes. centers: [K, D].
        reduction: mean (over the batch) or sum. With attention 1 they are `center_loss` by caffe's and the paper's normalisation.
    """
    name = "sparse_center_loss"
    one_of(name, "reduction", reduction, ("mean", "sum"))
    x, c, index, wrong = with_centers(name, features, target, centers)
    check.check_tensor(name, "attention", attention)
    check_probabilities(name, "attention", attention, "features", features)
    total = (attention * (x - c[index]).square()).masked_fill(wrong[:, None], math.nan).sum() / 2.0
    return total / max(len(x), 1) if reduction == "mean" else total


class SparseCenterLoss(ClassCenters):
    """`weight` times `sparse_center_loss` with centres of its own, of deviation sqrt(2 / K) at first.

    Args:
        update: counted (a parameter whose gradient is the sum of A (c - x) over 1 + the class's number of samples, as published: give it to
            SGD with rate 0.5), paper (the same step taken in the call, with `alpha`), or gradient (that of the loss). See `ClassCenters`.
        weight: the paper has 0.01; it does not act on the centres.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        update: str = "counted",
        alpha: float = 0.5,
        weight: float = 0.01,
        reduction: str = "mean",
        seed: int = 0,
        group=None,
    ):
        deviation = math.sqrt(2.0 / max(num_classes, 1)) if isinstance(num_classes, int) else 1.0
        super().__init__(num_classes, dim, update=update, alpha=alpha, weight=weight, deviation=deviation, seed=seed, group=group)
        one_of(type(self).__name__, "reduction", reduction, ("mean", "sum"))
        self.reduction = reduction

    def forward(self, features: Tensor, target: Tensor, attention: Tensor) -> Tensor:
        loss = self.weight * sparse_center_loss(features, target, self.centers.detach(), attention, reduction=self.reduction)
        return loss + self.follow(self.step(features.detach(), target, attention.detach())) if self.training else loss

    @torch.no_grad()
    def step(self, features: Tensor, target: Tensor, attention: Tensor) -> Tensor:
        """What the centres move against."""
        x, c, index, _ = with_centers(type(self).__name__, features, target, self.centers)
        d = computed(attention) * (c[index] - x)
        if self.update != "gradient":
            return self.counted(d, target)
        sums = self.sums(d, target)
        return sums / self.batch(target) if self.reduction == "mean" else sums


class CenterAttention(nn.Module):
    """The attention network of the sparse center loss: from the last feature map of an image, a weight in (0, 1) for each channel.

    Three layers with batch normalisation (the last with tanh) and a pair of logits for each channel, whose softmax's second half is
    the weight. As published for a ResNet-18's 512 channels of 7 x 7: 3,584, 512 and 64 hidden units.
    """

    def __init__(self, in_features: int = 512 * 7 * 7, dim: int = 512, hidden: tuple[int, int, int] = (3584, 512, 64)):
        super().__init__()
        layers, width = [], in_features
        for index, units in enumerate(hidden):
            layers += [nn.Linear(width, units), nn.BatchNorm1d(units), nn.Tanh() if index == len(hidden) - 1 else nn.ReLU()]
            width = units
        self.in_features, self.dim = in_features, dim
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, 2 * dim)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] or [B, C H W] -> [B, dim] in float32 at least."""
        flat = maps.flatten(1)
        if flat.shape[1] != self.in_features:
            check.fail("CenterAttention", "a map", f"have {self.in_features} numbers", flat.shape[1], "in_features is channels times height times width")
        return computed(self.head(self.body(flat))).unflatten(1, (self.dim, 2)).softmax(2)[:, :, 1]
