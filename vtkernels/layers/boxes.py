"""Boxes [n, 4] as x0 y0 x1 y1 in pixels, x1 and y1 just outside: areas, overlaps, and which of several boxes to keep."""

import torch
from torch import Tensor

from vtkernels._core import check


def box_areas(boxes: Tensor) -> Tensor:
    """[n]; of a box turned inside out, 0."""
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    return (x1 - x0).clamp(min=0) * (y1 - y0).clamp(min=0)


def pairwise_intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """Areas [n, m] that each box shares with each other one."""
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)
    left, top, right, bottom = others.unbind(dim=1)
    return (torch.minimum(x1, right) - torch.maximum(x0, left)).clamp(min=0) * (torch.minimum(y1, bottom) - torch.maximum(y0, top)).clamp(min=0)


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
    boxes, kept = boxes[order], torch.ones_like(order, dtype=torch.bool)
    classes = torch.zeros_like(order) if labels is None else labels[order]
    for label in classes.unique():
        places = (classes == label).nonzero()[:, 0]
        kept[places] = _survivors(boxes[places], threshold)
    return order[kept]


def _survivors(boxes: Tensor, threshold: float) -> Tensor:
    """bool [n]: of boxes in the order of their scores, those that none of the survivors before overlaps by more.

    Whether a box stays depends on better ones only: after n rounds the n best are settled, and a round without a change settles all. Chains
    of boxes are short, so that these are a few rounds over all boxes instead of one round for each.
    """
    suppresses = (pairwise_iou(boxes, boxes) > threshold).triu_(diagonal=1).float()
    kept = suppresses.new_ones(len(boxes))
    while True:
        # a product counts the survivors before that overlap
        now = (kept @ suppresses == 0).float()
        if torch.equal(now, kept):
            return kept.bool()
        kept = now
