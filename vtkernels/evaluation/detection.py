"""Average precision of boxes in the forms of COCO and of VOC, in float64.

Predictions and targets are dictionaries, one an image. Of predictions "boxes" [n, 4] as x0 y0 x1 y1, "scores" [n] and "labels" [n]; of targets
"boxes" and "labels" and, where there are some, bool [n] "crowd" (COCO: a box around many objects, which may be found any number of times) or
"difficult" (VOC). Objects so marked need not be found, and finding them is no error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtkernels._core.check import fail

# spelt as in COCO's code, whose rounding decides at equality
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
VOC_FORMS = ("area", "11 points")

Image = Mapping[str, Any]


@dataclass(frozen=True)
class DetectionScores:
    """Average precision.

    Attributes:
        precision: float64 [T, K], of each threshold and class, NaN for classes without an object to find.
        recall: float64 [T, K], the largest share of objects that was found.
        thresholds: [T] of intersection over union.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray

    @property
    def mean(self) -> float:
        """Over thresholds and classes: mAP. NaN where there was nothing to find."""
        return _mean(self.precision)

    @property
    def mean_recall(self) -> float:
        return _mean(self.recall)

    @property
    def of_classes(self) -> np.ndarray:
        """[K], over thresholds."""
        return self.precision.mean(axis=0)

    def at(self, threshold: float) -> float:
        """Over classes, at one threshold."""
        (places,) = np.nonzero(np.isclose(self.thresholds, threshold, rtol=0, atol=1e-9))
        if not len(places):
            fail("DetectionScores.at", "threshold", f"be one of {', '.join(f'{own:g}' for own in self.thresholds)}", threshold)
        return _mean(self.precision[places[0]])


def coco_average_precision(
    predictions: Sequence[Image], targets: Sequence[Image], num_classes: int, *, thresholds: Sequence[float] = THRESHOLDS, most: int = 100
) -> DetectionScores:
    """As COCO counts: the mean of the precisions at 101 recalls. `most` predictions of a class in an image count, the best ones.

    In the order of their scores, predictions take the object that they overlap most among those still free; crowds stay free.
    """
    thresholds = np.asarray(thresholds, dtype=np.float64)
    counts = _counted(
        "coco_average_precision", predictions, targets, num_classes, lambda own, there, spared: _coco_matches(own[:most], there, spared, thresholds), "crowd"
    )
    precision, recall = np.full((2, len(thresholds), num_classes), np.nan)
    for label, count in enumerate(counts):
        if count.objects == 0:
            continue
        for row in range(len(thresholds)):
            precisions, recalls = count.curve(row)
            places = np.searchsorted(recalls, RECALLS, side="left")
            # recalls that are never reached have precision 0
            precision[row, label] = np.append(_falling(precisions), 0.0)[places].mean()
            recall[row, label] = recalls[-1] if len(recalls) else 0.0
    return DetectionScores(precision, recall, thresholds)


def voc_average_precision(
    predictions: Sequence[Image], targets: Sequence[Image], num_classes: int, *, threshold: float = 0.5, form: str = "area"
) -> DetectionScores:
    """As VOC counts: the area under precision over recall (since 2010), or the mean of the precisions at 11 recalls ("11 points", 2007).

    Each prediction is held against the object that it overlaps most; the second one of an object is an error.
    """
    if form not in VOC_FORMS:
        fail("voc_average_precision", "form", f"be one of {', '.join(VOC_FORMS)}", repr(form))
    counts = _counted(
        "voc_average_precision", predictions, targets, num_classes, lambda own, there, spared: _voc_matches(own, there, spared, threshold), "difficult"
    )
    precision, recall = np.full((2, 1, num_classes), np.nan)
    for label, count in enumerate(counts):
        if count.objects == 0:
            continue
        precisions, recalls = count.curve(0)
        best = np.append(_falling(precisions), 0.0)
        if form == "area":
            precision[0, label] = (np.diff(recalls, prepend=0.0) * best[:-1]).sum()
        else:
            precision[0, label] = best[np.searchsorted(recalls, np.arange(11) / 10, side="left")].mean()
        recall[0, label] = recalls[-1] if len(recalls) else 0.0
    return DetectionScores(precision, recall, np.array([threshold]))


@dataclass
class _Count:
    """Of one class: how many objects are to be found, and of each prediction that counts its score, and whether it found one [T, n]."""

    objects: int
    scores: np.ndarray
    found: np.ndarray
    spared: np.ndarray

    def curve(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall after each prediction, the best first; of equal scores, the first image first."""
        if not len(self.scores):
            return np.zeros(0), np.zeros(0)
        order = np.argsort(-self.scores, kind="stable")
        order = order[~self.spared[row, order]]
        hits = np.cumsum(self.found[row, order], dtype=np.float64)
        return hits / np.arange(1, len(hits) + 1), hits / self.objects


Matches = tuple[np.ndarray, np.ndarray]


def _counted(what: str, predictions: Sequence[Image], targets: Sequence[Image], num_classes: int, matches: Callable[..., Matches], mark: str) -> list[_Count]:
    """Per class, over all images. `matches` says of predictions, in the order of their scores, which found an object and which do not count."""
    if len(predictions) != len(targets):
        fail(what, "predictions", f"be of as many images as the targets ({len(targets)})", len(predictions), "an image without any has empty arrays")
    parts: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in range(num_classes)]
    objects = np.zeros(num_classes, dtype=np.int64)
    for number, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        boxes, labels = _checked(what, f"predictions[{number}]", prediction, num_classes)
        scores = _array(prediction["scores"], np.float64)
        if scores.shape != labels.shape or np.isnan(scores).any():
            fail(what, f"predictions[{number}]['scores']", f"be {len(labels)} numbers", f"{list(scores.shape)}, {int(np.isnan(scores).sum())} of them NaN")
        there, classes = _checked(what, f"targets[{number}]", target, num_classes)
        spared = _array(target[mark], bool) if mark in target else np.zeros(len(classes), dtype=bool)
        objects += np.bincount(classes[~spared], minlength=num_classes)
        for label in np.unique(labels):
            (own,) = np.nonzero(labels == label)
            own = own[np.argsort(-scores[own], kind="stable")]
            of_class = classes == label
            found, left_out = matches(boxes[own], there[of_class], spared[of_class])
            parts[label].append((scores[own][: found.shape[1]], found, left_out))
    counts = []
    for own, count in zip(parts, objects.tolist(), strict=True):
        columns = [np.concatenate(column, axis=-1) for column in zip(*own, strict=True)] if own else [np.zeros(0), *np.zeros((2, 0, 0), dtype=bool)]
        counts.append(_Count(count, *columns))
    return counts


def _coco_matches(boxes: np.ndarray, there: np.ndarray, crowd: np.ndarray, thresholds: np.ndarray) -> Matches:
    found, left_out = np.zeros((2, len(thresholds), len(boxes)), dtype=bool)
    # crowds come last: an object is taken before one
    order = np.argsort(crowd, kind="stable")
    there, crowd = there[order], crowd[order]
    overlaps = _overlaps(boxes, there, crowd)
    for row, threshold in enumerate(thresholds):
        taken = np.zeros(len(there), dtype=bool)
        for place, own in enumerate(overlaps):
            fits = (own >= min(threshold, 1 - 1e-10)) & (crowd | ~taken)
            fits = fits & ~crowd if (fits & ~crowd).any() else fits
            if fits.any():
                # of equals the last, as in COCO's code
                best = len(own) - 1 - np.where(fits, own, -1.0)[::-1].argmax()
                taken[best] = True
                found[row, place], left_out[row, place] = not crowd[best], crowd[best]
    return found, left_out


def _voc_matches(boxes: np.ndarray, there: np.ndarray, difficult: np.ndarray, threshold: float) -> Matches:
    found, left_out = np.zeros((2, 1, len(boxes)), dtype=bool)
    taken = np.zeros(len(there), dtype=bool)
    if len(there):
        overlaps = _overlaps(boxes, there, np.zeros(len(there), dtype=bool))
        for place, best in enumerate(overlaps.argmax(axis=1)):
            if overlaps[place, best] >= threshold:
                left_out[0, place] = difficult[best]
                found[0, place] = not difficult[best] and not taken[best]
                taken[best] = True
    return found, left_out


def _overlaps(boxes: np.ndarray, there: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """[n, m] intersection over union; over the prediction's own area where the object is a crowd."""
    shared = (np.minimum(boxes[:, None, 2:], there[None, :, 2:]) - np.maximum(boxes[:, None, :2], there[None, :, :2])).clip(min=0).prod(axis=2)
    areas, others = ((own[:, 2:] - own[:, :2]).clip(min=0).prod(axis=1) for own in (boxes, there))
    whole = np.where(crowd[None], areas[:, None], areas[:, None] + others[None] - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _falling(precisions: np.ndarray) -> np.ndarray:
    """The best precision at this recall or a higher one."""
    return np.maximum.accumulate(precisions[::-1])[::-1]


def _checked(what: str, name: str, image: Image, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    boxes, labels = _array(image["boxes"], np.float64), _array(image["labels"], np.int64)
    if labels.ndim != 1 or boxes.size != 4 * len(labels):
        fail(what, f"{name}['boxes']", f"be [{labels.size}, 4], one for each label", list(boxes.shape))
    if not np.isfinite(boxes).all():
        fail(what, f"{name}['boxes']", "be finite numbers", "NaN or infinity", "did the model diverge?")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        fail(what, f"{name}['labels']", f"lie in 0..{num_classes - 1}", f"{labels.min()}..{labels.max()}")
    return boxes.reshape(-1, 4), labels


def _array(values: Any, dtype: type) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=dtype)


def _mean(values: np.ndarray) -> float:
    """Over the classes that there are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
