"""Overlaps, suppression and the GIoU loss against their definitions."""

import pytest
import torch

from vtkernels.layers import box_areas, clip_boxes, non_maximum_suppression, pairwise_iou
from vtkernels.losses import GiouLoss, giou_loss


def some_boxes(count: int, spread: float = 20.0) -> torch.Tensor:
    starts = torch.rand(count, 2) * spread
    return torch.cat([starts, starts + torch.rand(count, 2) * 20], dim=1)


def iou_by_hand(one: list[float], other: list[float]) -> float:
    width, height = (min(one[2 + axis], other[2 + axis]) - max(one[axis], other[axis]) for axis in (0, 1))
    shared = max(width, 0) * max(height, 0)
    return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared)


def test_overlaps():
    boxes, others = some_boxes(7).double(), some_boxes(5).double()
    expected = torch.tensor([[iou_by_hand(one, other) for other in others.tolist()] for one in boxes.tolist()], dtype=torch.float64)
    torch.testing.assert_close(pairwise_iou(boxes, others), expected, rtol=0, atol=1e-14)
    assert pairwise_iou(boxes, others[:0]).shape == (7, 0)
    flat = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    assert pairwise_iou(flat, flat).item() == 0 and box_areas(torch.tensor([[4.0, 0.0, 2.0, 5.0]])).item() == 0


def test_clipping():
    assert clip_boxes(torch.tensor([[-3.0, 2.0, 50.0, 40.0]]), (30, 20)).tolist() == [[0.0, 2.0, 20.0, 30.0]]


@pytest.mark.parametrize("spread, threshold", [(1.0, 0.5), (20.0, 0.3), (20.0, 0.6), (200.0, 0.5)])
def test_suppression_is_the_greedy_loop(spread, threshold):
    boxes, scores, labels = some_boxes(120, spread), torch.rand(120), torch.randint(0, 3, (120,))
    scores[::4] = 0.5
    overlaps, kept = pairwise_iou(boxes, boxes), []
    for place in sorted(range(120), key=lambda place: -scores[place]):
        if not any(overlaps[place, better] > threshold and labels[place] == labels[better] for better in kept):
            kept.append(place)
    assert non_maximum_suppression(boxes, scores, labels, threshold).tolist() == kept


def test_suppression_of_chains_and_of_nothing():
    # each overlaps the next only: every other one stays
    chain = torch.tensor([[float(place), 0.0, place + 1.9, 1.0] for place in range(40)])
    assert non_maximum_suppression(chain, torch.arange(40, 0, -1).float(), threshold=0.3).tolist() == list(range(0, 40, 2))
    assert non_maximum_suppression(torch.empty(0, 4), torch.empty(0)).tolist() == []
    with pytest.raises(ValueError, match="scores"):
        non_maximum_suppression(chain, torch.ones(3))


def test_giou_by_hand():
    square = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    cases = {(0.0, 0.0, 2.0, 2.0): 0.0, (1.0, 0.0, 3.0, 2.0): 1 - 2 / 6, (4.0, 0.0, 6.0, 2.0): 1 + 4 / 12, (1.0, 1.0, 3.0, 3.0): 1 - 1 / 7 + 2 / 9}
    for other, expected in cases.items():
        assert giou_loss(square, torch.tensor([other])).item() == pytest.approx(expected, abs=1e-6)
    assert giou_loss(square[:0], square[:0]).item() == 0 and GiouLoss(reduction="none")(square, square).shape == (1,)
    with pytest.raises(ValueError, match="one box for each"):
        giou_loss(square, square.repeat(2, 1))


def test_giou_gradients():
    boxes, target = some_boxes(6).double().requires_grad_(), some_boxes(6).double()
    assert torch.autograd.gradcheck(giou_loss, (boxes, target))
    flat = torch.zeros(1, 4, requires_grad=True)
    giou_loss(flat, torch.zeros(1, 4)).backward()
    assert flat.grad.isfinite().all()
