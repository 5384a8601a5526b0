"""Boxes [n, 4] as x0 y0 x1 y1 in pixels, x1 and y1 just outside: areas, overlaps, and which of several boxes to keep."""

import torch
from torch import Tensor

from vtkernels._core import check


def box_areas(boxes: Tensor) -> Tensor:
    """[n]; of a box turned inside out, 0."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def pairwise_intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """Areas [n, m] that each box shares with each other one."""
    starts = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    ends = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (ends - starts).clamp(min=0).prod(dim=2)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union [n, m]; of two boxes without an area, 0."""
    shared = pairwise_intersections(boxes, others)
    union = box_areas(boxes)[:, None] + box_areas(others)[None] - shared
    return torch.where(union > 0, shared / union, 0.0)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut at the borders of an image of `size` (rows, columns)."""
    rows, columns = size
    return torch.stack([boxes[..., 0].clamp(0, columns), boxes[..., 1].clamp(0, rows), boxes[..., 2].clamp(0, columns), boxes[..., 3].clamp(0, rows)], -1)


def non_maximum_suppression(boxes: Tensor, scores: Tensor, labels: Tensor | None = None, threshold: float = 0.5) -> Tensor:
    """Indices of the boxes that no better box kept overlaps by more than `threshold`, best first; of equal scores the first is better.

    Args:
        boxes: [n, 4].
        scores: [n].
        labels: [n] classes, which do not suppress each other; None has a single class.
        threshold: of intersection over union.
    """
    check.check_tensor("non_maximum_suppression", "boxes", boxes, 2, "[n, 4]")
    check.check_shape("non_maximum_suppression", "scores", scores, (len(boxes),), "one for each box")
    order = scores.argsort(descending=True, stable=True)
    suppresses = pairwise_iou(boxes[order], boxes[order]) > threshold
    if labels is not None:
        suppresses &= labels[order][:, None] == labels[order][None]
    suppresses = suppresses.triu(diagonal=1)
    kept = torch.ones_like(order, dtype=torch.bool)
    # Whether a box stays depends on better ones only: after n rounds the n best are settled, and a round without a change settles all.
    # Chains of boxes are short, so that these are a few rounds over all boxes instead of one round for each.
    while True:
        now = ~(suppresses & kept[:, None]).any(dim=0)
        if torch.equal(now, kept):
            return order[kept]
        kept = now
