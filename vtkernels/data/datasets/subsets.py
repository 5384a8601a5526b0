"""Parts of a data set, and labels that are wrong on purpose. Every draw depends on its seed alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vtkernels._core.check import fail
from vtkernels.data.datasets._base import ImageDataset


class Subset(ImageDataset):
    """Some samples of a set, by their indices, in that order."""

    def __init__(self, dataset: ImageDataset, indices: Sequence[int] | np.ndarray):
        self.dataset = dataset
        self.indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if self.indices.size and not 0 <= self.indices.min() <= self.indices.max() < len(dataset):
            fail("Subset", "indices", f"lie in 0..{len(dataset) - 1}", f"{self.indices.min()}..{self.indices.max()}")
        super().__init__(dataset.classes, dataset.targets[self.indices], dataset.statistics)

    def image(self, index: int) -> np.ndarray:
        return self.dataset.image(int(self.indices[index]))

    def target(self, index: int) -> Any:
        return self.dataset.target(int(self.indices[index]))


class _Relabelled(ImageDataset):
    """The same images under other labels."""

    def __init__(self, dataset: ImageDataset, targets: np.ndarray):
        super().__init__(dataset.classes, targets, dataset.statistics)
        self.dataset = dataset

    def image(self, index: int) -> np.ndarray:
        return self.dataset.image(index)


class NoisyLabels(_Relabelled):
    """Labels of which some were replaced.

    Attributes:
        clean_targets: the labels before.
        changed: bool array, where the two differ.
    """

    def __init__(self, dataset: ImageDataset, targets: np.ndarray):
        super().__init__(dataset, targets)
        self.clean_targets = dataset.targets
        self.changed = self.targets != self.clean_targets


def noisy_labels(dataset: ImageDataset, rate: float, *, seed: int = 0, among: str = "all") -> NoisyLabels:
    """Symmetric noise: each label independently replaced with probability `rate` by a uniform draw.

    Args:
        among: "all" draws from all K classes, so that a share rate * (K - 1) / K changes; "others" from those that are wrong.
    """
    _check_share("noisy_labels", "rate", rate)
    if among not in ("all", "others"):
        fail("noisy_labels", "among", "be 'all' or 'others'", repr(among))
    rng, count = np.random.default_rng(seed), len(dataset.classes)
    replaced = rng.random(len(dataset)) < rate
    # counted from the true class around the circle, where 0 is the class itself
    drawn = (dataset.targets + rng.integers(0 if among == "all" else 1, max(count, 2), len(dataset))) % count
    return NoisyLabels(dataset, np.where(replaced, drawn, dataset.targets))


def relabelled(dataset: ImageDataset, targets: np.ndarray) -> ImageDataset:
    """The same images under other labels, one for each."""
    if len(targets) != len(dataset):
        fail("relabelled", "targets", f"be one for each of {len(dataset)} images", len(targets))
    return _Relabelled(dataset, np.asarray(targets))


def unlabelled(dataset: ImageDataset) -> ImageDataset:
    """The images alone; every target is -1."""
    return _Relabelled(dataset, np.full(len(dataset), -1))


def class_balanced_subset(dataset: ImageDataset, per_class: int, *, seed: int = 0) -> Subset:
    """`per_class` samples of each class; an error where a class has fewer."""
    rng, chosen = np.random.default_rng(seed), []
    for label in range(len(dataset.classes)):
        own = np.flatnonzero(dataset.targets == label)
        if len(own) < per_class:
            fail("class_balanced_subset", "per_class", f"be at most {len(own)}, all that class {dataset.classes[label]!r} has", per_class)
        chosen.append(rng.permutation(own)[:per_class])
    return Subset(dataset, np.sort(np.concatenate(chosen)) if chosen else [])


def class_subset(dataset: ImageDataset, names: Sequence[str]) -> ImageDataset:
    """The samples of some classes, whose labels count through `names`."""
    unknown = [name for name in names if name not in dataset.classes]
    if unknown:
        fail("class_subset", "names", "be classes of the set", unknown)
    label = {dataset.classes.index(name): position for position, name in enumerate(names)}
    part = Subset(dataset, np.flatnonzero(np.isin(dataset.targets, list(label))))
    renamed = _Relabelled(part, np.array([label[target] for target in part.targets.tolist()], dtype=np.int64))
    renamed.classes = tuple(names)
    return renamed


def fraction_subset(dataset: ImageDataset, fraction: float, *, seed: int = 0) -> Subset:
    """The whole part floor(N * fraction) of a set, uniformly. With one seed, smaller parts lie inside larger ones."""
    _check_share("fraction_subset", "fraction", fraction)
    order = np.random.default_rng(seed).permutation(len(dataset))
    # 0.29 * 100 is a little less than 29
    return Subset(dataset, np.sort(order[: int(len(dataset) * fraction + 1e-6)]))


def stratified_split(dataset: ImageDataset, fraction: float, *, seed: int = 0) -> tuple[Subset, Subset]:
    """(the rest, a part of `fraction` with each class in its share), such as training and validation set.

    The part has round(N * fraction) samples; what the classes' whole numbers leave over goes to the largest remainders.
    """
    _check_share("stratified_split", "fraction", fraction)
    rng = np.random.default_rng(seed)
    labels, inverse, counts = np.unique(dataset.targets, return_inverse=True, return_counts=True)
    share = counts * fraction
    taken = np.floor(share).astype(np.int64)
    left_over = round(len(dataset) * fraction) - taken.sum()
    taken[np.argsort(-(share - taken), kind="stable")[:left_over]] += 1
    part = np.zeros(len(dataset), dtype=bool)
    for position in range(len(labels)):
        part[rng.permutation(np.flatnonzero(inverse == position))[: taken[position]]] = True
    return Subset(dataset, np.flatnonzero(~part)), Subset(dataset, np.flatnonzero(part))


class LabelPool:
    """Which samples of a set have a label yet: a labelled start, and a pool to choose from.

    Args:
        labelled: indices that start with a label, or how many of each class shall (drawn by `seed`).
    """

    def __init__(self, dataset: ImageDataset, labelled: int | Sequence[int], *, seed: int = 0):
        self.dataset = dataset
        start = class_balanced_subset(dataset, labelled, seed=seed).indices if isinstance(labelled, (int, np.integer)) else labelled
        self._labelled = np.zeros(len(dataset), dtype=bool)
        self.label(start)

    def label(self, indices: Sequence[int] | np.ndarray) -> None:
        """Give labels to samples of the pool, by their indices in the whole set."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(np.unique(indices)) != len(indices) or (indices.size and not 0 <= indices.min() <= indices.max() < len(self.dataset)):
            fail("LabelPool", "indices", f"be different and lie in 0..{len(self.dataset) - 1}", indices.tolist()[:8])
        if self._labelled[indices].any():
            fail("LabelPool", "indices", "be of samples without a label", indices[self._labelled[indices]].tolist()[:8])
        self._labelled[indices] = True

    @property
    def labelled(self) -> Subset:
        return Subset(self.dataset, np.flatnonzero(self._labelled))

    @property
    def pool(self) -> Subset:
        """Samples without a label; `.indices` are those that `label` takes, and `unlabelled(pool)` hides what they are."""
        return Subset(self.dataset, np.flatnonzero(~self._labelled))


def _check_share(function: str, name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        fail(function, name, "lie in 0..1", value)
