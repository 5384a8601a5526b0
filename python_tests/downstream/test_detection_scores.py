"""Average precision against COCO's own code where it is installed, against the definition on cases by hand, and where there is nothing."""

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest

from vtkernels.evaluation import coco_average_precision, voc_average_precision

Image = dict[str, np.ndarray]
SQUARE = [0.0, 0.0, 10.0, 10.0]
# overlaps the square by 0.8
EIGHT = [0.0, 0.0, 10.0, 8.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def found(*entries: tuple[list[float], float], label: int = 0) -> Image:
    return {
        "boxes": np.array([box for box, _ in entries]).reshape(-1, 4),
        "scores": np.array([score for _, score in entries]),
        "labels": np.full(len(entries), label),
    }


def there(*boxes: list[float], label: int = 0, **marks: list[bool]) -> Image:
    return {"boxes": np.array(boxes).reshape(-1, 4), "labels": np.full(len(boxes), label), **{name: np.array(mark) for name, mark in marks.items()}}


def ap(predictions: list[Image], targets: list[Image], **options: Any) -> float:
    return coco_average_precision(predictions, targets, 1, **options).at(0.5)


def test_perfect_and_wrong():
    assert ap([found((SQUARE, 0.9))], [there(SQUARE)]) == 1.0
    assert ap([found((FAR, 0.9))], [there(SQUARE)]) == 0.0
    assert ap([found()], [there(SQUARE)]) == 0.0
    # an overlap of 0.8 is enough for the thresholds 0.5 to 0.8, seven of ten
    assert coco_average_precision([found((EIGHT, 0.9))], [there(SQUARE)], 1).mean == pytest.approx(0.7, abs=1e-12)


def test_the_101_points():
    # right, wrong, right, of three objects: precision 1 up to recall 1/3 (34 points), 2/3 up to 2/3 (33 points), then 0
    predictions = [found((SQUARE, 0.9), ([0.0, 80.0, 5.0, 85.0], 0.8), (FAR, 0.7))]
    targets = [there(SQUARE, FAR, [20.0, 20.0, 30.0, 30.0])]
    assert ap(predictions, targets) == pytest.approx((34 + 33 * 2 / 3) / 101, abs=1e-12)
    # the area: 1/3 at 1, 1/3 at 2/3; eleven points: 0 .. 0.3 at 1, 0.4 .. 0.6 at 2/3
    assert voc_average_precision(predictions, targets, 1).mean == pytest.approx(1 / 3 + 2 / 9, abs=1e-12)
    assert voc_average_precision(predictions, targets, 1, form="11 points").mean == pytest.approx((4 + 3 * 2 / 3) / 11, abs=1e-12)


def test_an_object_is_found_once():
    predictions, targets = [found((SQUARE, 0.9), (EIGHT, 0.8))], [there(SQUARE)]
    assert ap(predictions, targets) == 1.0 and ap([found((EIGHT, 0.9), (SQUARE, 0.8))], targets) == 1.0
    late = [found((FAR, 0.95), (SQUARE, 0.9), (EIGHT, 0.8))]
    assert ap(late, targets) == pytest.approx(0.5, abs=1e-12)


def test_coco_takes_the_next_free_object_and_voc_does_not():
    # both predictions overlap the first object most; the second object is near enough for the second one
    predictions = [found((SQUARE, 0.9), ([0.0, 0.0, 10.0, 9.0], 0.8))]
    targets = [there(SQUARE, [0.0, 0.0, 10.0, 7.0])]
    assert ap(predictions, targets) == 1.0
    assert voc_average_precision(predictions, targets, 1).mean == pytest.approx(0.5, abs=1e-12)


def test_crowds_and_difficult_objects():
    inside = found((SQUARE, 0.9), ([50.0, 50.0, 55.0, 55.0], 0.95), ([54.0, 54.0, 60.0, 60.0], 0.97))
    targets = [there(SQUARE, FAR, crowd=[False, True])]
    # both lie in the crowd with their whole area, and neither counts
    assert ap([inside], targets) == 1.0
    assert ap([inside], [there(SQUARE, FAR, crowd=[False, False])]) == pytest.approx(51 / 101 / 3, abs=1e-12)
    difficult = [there(SQUARE, FAR, difficult=[False, True])]
    assert voc_average_precision([found((SQUARE, 0.5), (FAR, 0.9), (FAR, 0.8))], difficult, 1).mean == 1.0
    assert math.isnan(ap([inside], [there(FAR, crowd=[True])]))


def test_ties_go_to_the_first_image():
    images = [found((SQUARE, 0.5)), found((FAR, 0.5))]
    targets = [there(SQUARE), there(SQUARE)]
    assert ap(images, targets) == pytest.approx(51 / 101, abs=1e-12)
    assert ap(images[::-1], targets) == pytest.approx(51 / 101 / 2, abs=1e-12)


def test_only_the_best_count():
    predictions = [found(*[(FAR, 0.9)] * 3, (SQUARE, 0.1))]
    assert ap(predictions, [there(SQUARE)], most=3) == 0.0 and ap(predictions, [there(SQUARE)]) == pytest.approx(0.25, abs=1e-12)


def test_nothing_to_find():
    for score in (coco_average_precision, voc_average_precision):
        assert math.isnan(score([], [], 3).mean)
        assert math.isnan(score([found((SQUARE, 0.5))], [there()], 3).mean)
        scores = score([found((SQUARE, 0.5), label=2)], [there(SQUARE, label=1)], 3)
        assert np.isnan(scores.of_classes[[0, 2]]).all() and scores.of_classes[1] == 0 and scores.mean == 0 and scores.mean_recall == 0


@pytest.mark.parametrize(
    "prediction, target, message",
    [
        (found((SQUARE, float("nan"))), there(SQUARE), "1 of them NaN"),
        (found(([0.0, 0.0, math.inf, 1.0], 0.5)), there(SQUARE), "be finite"),
        (found((SQUARE, 0.5), label=3), there(SQUARE), r"predictions\[0\]\['labels'\] must lie in 0\.\.0"),
        (found((SQUARE, 0.5)), there(SQUARE, label=-1), r"targets\[0\]\['labels'\] must lie in 0\.\.0"),
    ],
)
def test_wrong_values(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        coco_average_precision([prediction], [target], 1)
    with pytest.raises(ValueError, match="as many images as the targets"):
        coco_average_precision([prediction, prediction], [target], 1)


def random_set(seed: int) -> tuple[list[Image], list[Image], int]:
    """Boxes on a coarse grid, so that overlaps and, for even seeds, scores are equal now and then."""
    rng = np.random.default_rng(seed)
    classes, predictions, targets = int(rng.integers(1, 5)), [], []
    for _ in range(rng.integers(1, 8)):
        starts, count, wrong = rng.integers(0, 30, (8, 2)), int(rng.integers(0, 8)), int(rng.integers(0, 4))
        boxes = np.concatenate([starts, starts + rng.integers(1, 20, (8, 2))], axis=1).astype(float)[:count]
        labels = rng.integers(0, classes, count)
        targets.append({"boxes": boxes, "labels": labels, "crowd": rng.random(count) < 0.2})
        starts = rng.integers(0, 30, (wrong, 2))
        others = np.concatenate([starts, starts + rng.integers(1, 20, (wrong, 2))], axis=1)
        near = np.concatenate([boxes + rng.integers(-2, 3, boxes.shape), others])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        scores = rng.random(len(near)) if seed % 2 else rng.integers(0, 6, len(near)) / 5
        predictions.append({"boxes": near, "labels": np.concatenate([labels, rng.integers(0, classes, wrong)]), "scores": scores})
    return predictions, targets, classes


def published(predictions: list[Image], targets: list[Image], classes: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall [T, K] by COCO's own code."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")

    def entry(number: int, image: int, box: np.ndarray, label: int) -> dict[str, Any]:
        width, height = box[2:] - box[:2]
        return {"id": number, "image_id": image, "category_id": int(label), "bbox": [*box[:2], width, height], "area": width * height, "iscrowd": 0}

    def as_set(images: list[Image], extra: str, name: str) -> Any:
        rows = [(image, *row) for image, own in enumerate(images, 1) for row in zip(own["boxes"], own["labels"], own[extra], strict=True)]
        made = coco.COCO()
        entries = [entry(number, image, box, label) | {name: float(value)} for number, (image, box, label, value) in enumerate(rows, 1)]
        made.dataset = {
            "images": [{"id": image} for image in range(1, len(images) + 1)],
            "annotations": entries,
            "categories": [{"id": own} for own in range(classes)],
        }
        made.createIndex()
        return made

    with contextlib.redirect_stdout(io.StringIO()):
        run = evaluation.COCOeval(as_set(targets, "crowd", "iscrowd"), as_set(predictions, "scores", "score"), "bbox")
        run.params.maxDets = [1, 2, most]
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval["precision"][..., 0, -1].mean(axis=1), run.eval["recall"][..., 0, -1]
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


@pytest.mark.parametrize("most", [3, 100])
def test_coco_is_the_published_code(most):
    for seed in range(40):
        predictions, targets, classes = random_set(seed)
        scores = coco_average_precision(predictions, targets, classes, most=most)
        precision, recall = published(predictions, targets, classes, most)
        np.testing.assert_allclose(scores.precision, precision, atol=1e-12)
        np.testing.assert_allclose(scores.recall, recall, atol=1e-12)
