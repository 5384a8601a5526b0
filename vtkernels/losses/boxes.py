"""Losses of boxes: how far two of them are from being one."""

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.losses._input import computed, reduced
from vtkernels.losses._module import Loss


def giou_loss(boxes: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """1 - IoU + the share of the smallest box around both that is in neither (arXiv:1902.09630): from 0 for equal boxes to 2.

    Args:
        boxes, target: [n, 4] as x0 y0 x1 y1, with x1 >= x0 and y1 >= y0.
        reduction: mean over the boxes, sum, or none.
    """
    name = "giou_loss"
    for own, value in (("boxes", boxes), ("target", target)):
        check.check_tensor(name, own, value, 2, "[n, 4]")
        check.check_floating(name, own, value)
    check.check_shape(name, "boxes", boxes, (len(boxes), 4), "give x0, y0, x1, y1")
    check.check_shape(name, "target", target, tuple(boxes.shape), "one box for each of boxes")
    boxes, target = computed(boxes), computed(target)
    shared = _area((torch.minimum(boxes[:, 2:], target[:, 2:]) - torch.maximum(boxes[:, :2], target[:, :2])).clamp(min=0))
    around = _area(torch.maximum(boxes[:, 2:], target[:, 2:]) - torch.minimum(boxes[:, :2], target[:, :2]))
    union = sum(_area(own[:, 2:] - own[:, :2]) for own in (boxes, target)) - shared
    # two equal boxes without an area are equal all the same
    eps = torch.finfo(union.dtype).eps
    return reduced(name, 1 - (shared + eps) / (union + eps) + (around - union) / (around + eps), reduction)


def _area(sides: Tensor) -> Tensor:
    return sides[:, 0] * sides[:, 1]


class GiouLoss(Loss):
    """`giou_loss` as a module."""

    function = staticmethod(giou_loss)
