"""Region attention networks: a face and crops of it weighed by attention, and the loss that wants one crop to matter more than the face."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.losses._input import computed, number, one_of
from vtkernels.losses._module import Loss


def region_biased_loss(weights: Tensor, *, margin: float = 0.02, whole: int = -1) -> Tensor:
    """max(0, margin - (the largest weight of a crop - the weight of the whole image)), averaged over the batch.

    Args:
        weights: [B, R] attention weights of R - 1 crops and the whole image.
        margin: the paper has 0.02, its code for FERPlus 0.1.
        whole: which region is the whole image, the last as in the published code.
    """
    name = "region_biased_loss"
    check.check_tensor(name, "weights", weights, 2, "[batch, regions]")
    check.check_floating(name, "weights", weights)
    number(name, "margin", margin, hint="0.02 and 0.1 are usual")
    regions = weights.shape[1]
    if regions < 2:
        check.fail(name, "weights", "have at least two regions", list(weights.shape), "the whole image and one crop")
    if not isinstance(whole, int) or not -regions <= whole < regions:
        check.fail(name, "whole", f"be one of the {regions} regions", whole, "-1 is the last")
    w = computed(weights)
    is_whole = torch.arange(regions, device=w.device) == whole % regions
    # max, unlike amax, gives its gradient to one of equals
    best = w.masked_fill(is_whole, -torch.inf).max(1).values
    return (margin - (best - w[:, whole])).clamp(min=0.0).sum() / max(len(w), 1)


class RegionBiasedLoss(Loss):
    """`region_biased_loss` as a module."""

    function = staticmethod(region_biased_loss)


class RegionOutput(NamedTuple):
    logits: Tensor
    # [B, R], for `region_biased_loss`
    weights: Tensor


class RegionAttention(nn.Module):
    """The head of a region attention network: features [B, R, D] of R regions of an image become one, twice weighed, and its logits.

    Self-attention: a_i = sigmoid(w f_i + b), and the mean f_m = sum a_i f_i / sum a_i. Relation-attention: v_i = [f_i ; f_m],
    b_i = sigmoid(w' v_i + b'), and the output sum a_i b_i v_i / sum a_i b_i.

    Args:
        dim: D. num_classes: of the logits.
        normalize: softmax over the regions after each sigmoid, as the published code does; or sigmoid alone, as the paper says.
        dropout: before the logits.
    """

    def __init__(self, dim: int = 512, num_classes: int = 8, normalize: str = "softmax", dropout: float = 0.0):
        super().__init__()
        one_of("RegionAttention", "normalize", normalize, ("softmax", "sigmoid"), "softmax is the published code's")
        self.normalize = normalize
        self.own = nn.Linear(dim, 1)
        self.relation = nn.Linear(2 * dim, 1)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(2 * dim, num_classes)

    def forward(self, features: Tensor) -> RegionOutput:
        check.check_tensor("RegionAttention", "features", features, 3, "[batch, regions, channels]")
        if features.shape[2] != self.own.in_features:
            check.fail("RegionAttention", "features", f"have {self.own.in_features} channels", features.shape[2], "dim is the width of one region's features")
        own = self._weights(self.own(features))
        mean = _weighed(features, own)
        pairs = torch.cat((features, mean.to(features.dtype)[:, None].expand_as(features)), 2)
        relation = self._weights(self.relation(pairs))
        logits = self.head(self.drop(_weighed(pairs, own * relation).to(pairs.dtype)))
        return RegionOutput(logits, own[:, :, 0])

    def _weights(self, logits: Tensor) -> Tensor:
        weights = computed(logits).sigmoid()
        return weights.softmax(1) if self.normalize == "softmax" else weights

    def extra_repr(self) -> str:
        return f"normalize={self.normalize!r}"


def _weighed(features: Tensor, weights: Tensor) -> Tensor:
    """[B, R, D] and [B, R, 1] -> [B, D]"""
    return (features * weights).sum(1) / weights.sum(1)
