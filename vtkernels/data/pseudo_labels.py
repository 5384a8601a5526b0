"""What a teacher says of images without labels: a file of it, a choice among it, and a data set to train on.

The file is NumPy's .npz, without pickled objects. Row n of each array is about one image; an image that stands for several has several rows.

    index          int64 [N]       place of the image in the pool
    label          int64 [N]       the class with the highest probability
    confidence     float32 [N]     that probability
    probabilities  float32 [N, K]  of all classes, softmax of the logits at temperature 1; left out where only hard labels are kept
    about          JSON text       format, classes (names, by index), pool (images it has), and whatever the writer adds, such as teacher
"""

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.datasets._base import ImageDataset

FORMAT = 1


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The content of such a file.

    Attributes:
        index, label, confidence: [N], see above.
        probabilities: [N, K], or None of hard labels.
        classes: names, by index.
        pool: images of the set that `index` counts in.
        about: more of it, in plain values.
    """

    index: np.ndarray
    label: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None
    classes: tuple[str, ...]
    pool: int
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dims, kinds in (("index", 1, "iu"), ("label", 1, "iu"), ("confidence", 1, "fiu"), ("probabilities", 2, "f")):
            part = getattr(self, name)
            if part is not None and (part.ndim != dims or part.dtype.kind not in kinds):
                expected = f"be {'whole ' if kinds == 'iu' else ''}numbers {'[N]' if dims == 1 else '[N, K]'}"
                _refuse(name, expected, f"{part.dtype} {list(part.shape)}")
        lengths = {len(part) for part in (self.index, self.label, self.confidence, self.probabilities) if part is not None}
        if len(lengths) > 1:
            _refuse("its columns", "be equally long", sorted(lengths))
        if self.probabilities is not None and self.probabilities.shape != (len(self), len(self.classes)):
            _refuse("probabilities", f"have shape {[len(self), len(self.classes)]}", list(self.probabilities.shape))
        for name, values, most in (("index", self.index, self.pool - 1), ("label", self.label, len(self.classes) - 1)):
            if values.size and not 0 <= values.min() <= values.max() <= most:
                _refuse(name, f"lie in 0..{most}", f"{values.min()}..{values.max()}")
        if not np.isfinite(self.confidence).all():
            _refuse("confidence", "be finite", "NaN or infinity")

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def of(cls, probabilities: Any, classes: Sequence[str], **about: Any) -> Self:
        """Of every image of a pool, in its order, from probabilities [N, K]."""
        values = np.asarray(probabilities, dtype=np.float32)
        if values.ndim != 2 or values.shape[1] != len(classes):
            _refuse("probabilities", f"have shape [images, {len(classes)}]", list(values.shape))
        _check_probabilities(values)
        return cls(np.arange(len(values)), values.argmax(1), values.max(1), values, tuple(classes), len(values), about)

    def confident(self, threshold: float) -> Self:
        """Those with at least this confidence."""
        if not 0 <= threshold <= 1:
            _refuse("threshold", "lie in 0..1", threshold, "0.3 is usual")
        return self._rows(np.flatnonzero(self.confidence >= threshold))

    def balanced(self, per_class: int) -> Self:
        """`per_class` rows of each class that has any: the most confident ones, or, of a class with fewer, all of them again and again."""
        if per_class < 1:
            _refuse("per_class", "be at least 1", per_class)
        # of equals, the earlier image
        order = np.lexsort((self.index, -self.confidence))
        chosen = [np.resize(own, per_class) for label in range(len(self.classes)) if len(own := order[self.label[order] == label])]
        return self._rows(np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64))

    def hard(self) -> Self:
        """Without the probabilities."""
        return replace(self, probabilities=None)

    def counts(self) -> np.ndarray:
        """[K]: rows of each class."""
        return np.bincount(self.label, minlength=len(self.classes))

    def save(self, path: Path | str) -> None:
        """Whole or not at all."""
        path = Path(path)
        about = json.dumps(self.about | {"format": FORMAT, "classes": list(self.classes), "pool": self.pool})
        columns = {"index": self.index.astype(np.int64), "label": self.label.astype(np.int64), "confidence": self.confidence.astype(np.float32)}
        if self.probabilities is not None:
            columns["probabilities"] = self.probabilities.astype(np.float32)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.writing")
        with open(beside, "wb") as file:
            np.savez_compressed(file, about=np.array(about), **columns)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a file of pseudo-labels, got no such file; `vtkernels noisy-student` writes one in each cycle")
        try:
            with np.load(path, allow_pickle=False) as content:
                columns = {name: content[name] for name in content.files}
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{path}: expected a complete .npz file without pickled objects, got {error}; write it anew") from error
        missing = [name for name in ("about", "index", "label", "confidence") if name not in columns]
        if missing:
            raise ValueError(f"{path}: expected the columns of pseudo-labels, got none called {', '.join(missing)}; see vtkernels.data.pseudo_labels")
        try:
            about = json.loads(str(columns["about"]))
            number, classes, pool = (about.pop(name) for name in ("format", "classes", "pool"))
            classes, pool = tuple(map(str, classes)), int(pool)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: expected JSON with format, classes and pool in `about`, got something else ({error}); write it anew") from error
        if number != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT}, got {number}; was it written by another version?")
        try:
            labels = cls(columns["index"], columns["label"], columns["confidence"], columns.get("probabilities"), classes, pool, about)
            if labels.probabilities is not None:
                _check_probabilities(labels.probabilities)
            return labels
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _rows(self, rows: np.ndarray) -> Self:
        kept = None if self.probabilities is None else self.probabilities[rows]
        return replace(self, index=self.index[rows], label=self.label[rows], confidence=self.confidence[rows], probabilities=kept)


class PseudoLabelled(ImageDataset):
    """Images of a pool with what a teacher says of them as targets, one sample for each row.

    Args:
        form: "soft" targets are the probabilities [K], "hard" ones the class.
    """

    def __init__(self, pool: ImageDataset, labels: PseudoLabels, form: str = "soft"):
        if form not in ("soft", "hard"):
            fail("PseudoLabelled", "form", "be soft or hard", repr(form))
        if form == "soft" and labels.probabilities is None:
            fail("PseudoLabelled", "labels", "have probabilities for soft targets", "classes only", "try form='hard'")
        if labels.pool != len(pool):
            fail("PseudoLabelled", "labels", f"be of this pool of {len(pool)} images", f"those of a pool of {labels.pool}", "was another part left unlabelled?")
        super().__init__(labels.classes, labels.label, pool.statistics)
        self.pool, self.labels, self.form = pool, labels, form

    def image(self, index: int) -> np.ndarray:
        return self.pool.image(int(self.labels.index[index]))

    def target(self, index: int) -> Any:
        return self.labels.probabilities[index] if self.form == "soft" else int(self.targets[index])


def _check_probabilities(values: np.ndarray) -> None:
    if not np.isfinite(values).all() or (values < 0).any() or (np.abs(values.sum(1, dtype=np.float64) - 1) > 1e-3).any():
        _refuse("probabilities", "be finite, at least 0, and sum to 1", "others", "take the softmax of the logits first")


def _refuse(name: str, expected: str, got: Any, hint: str = "") -> None:
    fail("PseudoLabels", name, expected, got, hint)
