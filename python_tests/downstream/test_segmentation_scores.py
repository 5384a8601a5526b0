"""Mean intersection over union against scikit-learn and torchmetrics, and where there is nothing to count."""

import math

import numpy as np
import pytest
import torch
from optional import peer

from vtkernels.evaluation import pixel_confusion, segmentation_scores

VOID = 255


def pixels(seed: int, classes: int, seen: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and targets in which only the first `seen` of the classes occur."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, seen, (3, 9, 11))
    predicted = np.where(rng.random(targets.shape) < 0.6, targets, rng.integers(0, seen, targets.shape))
    targets[rng.random(targets.shape) < 0.1] = VOID
    return torch.from_numpy(predicted), torch.from_numpy(targets)


@pytest.mark.parametrize("classes, seen", [(2, 2), (5, 5), (6, 3), (150, 20), (3, 1)])
def test_iou_is_scikit_learns(classes, seen):
    metrics = peer("sklearn.metrics")
    predicted, targets = pixels(classes, classes, seen)
    counted = targets != VOID
    scores = segmentation_scores(pixel_confusion(predicted, targets, classes))
    given = targets[counted].numpy(), predicted[counted].numpy()
    expected = metrics.jaccard_score(*given, labels=range(classes), average=None, zero_division=0)
    np.testing.assert_allclose(scores.iou.nan_to_num(0.0), expected, atol=1e-12)
    assert scores.iou.isnan().sum() == classes - seen
    assert scores.mean_iou("zero") == pytest.approx(expected.mean(), abs=1e-12)
    assert scores.mean_iou() == pytest.approx(expected[:seen].mean(), abs=1e-12)
    assert scores.weighted_iou == pytest.approx(metrics.jaccard_score(*given, average="weighted", zero_division=0), abs=1e-12)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(*given), abs=1e-12)
    if seen > 1:
        assert scores.mean_recall == pytest.approx(metrics.balanced_accuracy_score(*given), abs=1e-12)


@pytest.mark.parametrize("classes, seen", [(5, 5), (6, 3)])
def test_iou_is_torchmetrics(classes, seen):
    jaccard = peer("torchmetrics.classification").MulticlassJaccardIndex(classes, average=None, ignore_index=VOID)
    predicted, targets = pixels(classes + 10, classes, seen)
    scores = segmentation_scores(pixel_confusion(predicted, targets, classes))
    # it computes in float32
    torch.testing.assert_close(scores.iou.nan_to_num(0.0), jaccard(predicted, targets).double(), atol=1e-6, rtol=0)


def test_parts_add_up_to_the_whole():
    predicted, targets = pixels(0, 4, 4)
    parts = sum(pixel_confusion(p, t, 4) for p, t in zip(predicted, targets, strict=True))
    assert torch.equal(parts, pixel_confusion(predicted, targets, 4))


def test_a_case_by_hand():
    predicted, targets = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, VOID]])
    scores = segmentation_scores(pixel_confusion(predicted, targets, 3))
    assert scores.iou[:2].tolist() == [0.5, 0.5] and scores.iou[2].isnan()
    assert scores.mean_iou() == 0.5 and scores.mean_iou("zero") == pytest.approx(1 / 3) and scores.accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("targets", [torch.full((2, 3), VOID), torch.empty(0, dtype=torch.long)])
def test_nothing_counts(targets):
    confusion = pixel_confusion(torch.zeros_like(targets), targets, 3)
    scores = segmentation_scores(confusion)
    assert not confusion.any() and math.isnan(scores.mean_iou()) and math.isnan(scores.mean_iou("zero")) and math.isnan(scores.accuracy)


@pytest.mark.parametrize(
    "predicted, targets, message",
    [
        ([[0, 1]], [[0, 3]], r"targets must lie in 0\.\.2, got 0\.\.3; pixels that do not count are 255"),
        ([[0, 1]], [[0, -1]], r"targets must lie in 0\.\.2, got -1\.\.0"),
        ([[0, 5]], [[0, 1]], r"predicted must lie in 0\.\.2"),
        ([[0]], [[0, 1]], "have the targets' shape"),
    ],
)
def test_wrong_input(predicted, targets, message):
    with pytest.raises(ValueError, match=message):
        pixel_confusion(torch.tensor(predicted), torch.tensor(targets), 3)
