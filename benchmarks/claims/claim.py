"""What a claim is made of: arms that are trained, and parts that are tested on what the arms reached."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.judgement import Interval, interval
from vtkernels.recipes import Recipe
from vtkernels.train import Trainer

Metrics = dict[str, float]
# (the trainer when it is done, its recipe) -> what its arm reached
Measure = Callable[[Trainer, Recipe], Metrics]
# (recipe, folder of the run, that of its teacher's run, device) -> what its arm reached; what is there already is not done again
Training = Callable[[Recipe, Path, Path | None, torch.device | None], Metrics]
# metrics of each arm, by seed
Results = Mapping[str, Mapping[int, Metrics]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """At what size claims are tested.

    Attributes:
        scale: "full" takes the recipes as they are, "tiny" the smallest models on digits.
        data, path: another data set than the recipes', and the folder of its files.
        corrupted: folder of published corrupted images; None makes them.
        updates: of each arm, about, at tiny scale.
    """

    scale: str = "tiny"
    data: str | None = None
    path: Path | None = None
    corrupted: Path | None = None
    updates: int = 270

    def check_data(self, own: str) -> None:
        """For claims that are about one data set."""
        if self.data not in (None, own):
            raise ValueError(f"--data: expected {own} for this claim at {self.scale} scale, got {self.data}; leave it out")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        name: of the arm, and of its line in the picture where it has a place on it.
        recipe: at the scale that is run; its seed is set for each run.
        measure: what is measured of the trained model.
        train: where an arm is more than one training of its recipe: does all of it, and measures.
        teacher: the arm whose model of the same seed teaches this one, or is where it begins; it is trained before.
        keep: whether the trained weights are kept on disk.
    """

    name: str
    recipe: Recipe
    measure: Measure | None = None
    train: Training | None = None
    teacher: str | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        if (self.measure is None) == (self.train is None):
            raise ValueError(f"arm {self.name}: expected either a measure or a training of its own, got {'none' if self.measure is None else 'both'}")

    @property
    def measured(self) -> str:
        """The measure as text, for files."""
        own = self.train or self.measure
        return getattr(own, "__name__", None) or repr(own)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A sentence that is true or not: the sum of these arms' values, with these factors, is above zero.

    Attributes:
        says: the sentence.
        terms: arm -> factor.
        metric: whose values are meant.
        unit: of the sum.
    """

    says: str
    terms: Mapping[str, float]
    metric: str = "top1"
    unit: str = "points"

    def differences(self, results: Results) -> dict[int, float]:
        """By seed, where all arms have the metric."""
        runs = [results.get(arm, {}) for arm in self.terms]
        seeds = sorted(set.intersection(*(set(run) for run in runs)))
        known = [seed for seed in seeds if all(self.metric in run[seed] for run in runs)]
        return {seed: sum(factor * run[seed][self.metric] for factor, run in zip(self.terms.values(), runs, strict=True)) for seed in known}

    def interval(self, results: Results) -> Interval | None:
        differences = self.differences(results)
        return interval(list(differences.values())) if differences else None


def more(says: str, arm: str, than: str, metric: str = "top1", unit: str = "points", factor: float = 1.0) -> Part:
    """`arm` has more of the metric than another one; less, with a factor of -1."""
    return Part(says=says, terms={arm: factor, than: -factor}, metric=metric, unit=unit)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a source says.

    Attributes:
        name: of the script and its files.
        title: of the picture.
        says: the claim in a sentence.
        source: who says so.
        limits: what the test cannot show at tiny scale.
        metric, label: what the picture shows of the arms.
        lines: name -> arms on a line over `places`, for claims about the size of the set.
        places, place_label: x values of each line's arms, and their name.
        paired_lines: every second line is the one before with a technique: the two share a panel.
    """

    name: str
    title: str
    says: str
    source: str
    arms: tuple[Arm, ...]
    parts: tuple[Part, ...]
    limits: str = ""
    metric: str = "top1"
    label: str = "accuracy (%)"
    lines: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    places: tuple[float, ...] = ()
    place_label: str = "share of the training images (%)"
    paired_lines: bool = False

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        wrong = {arm for part in self.parts for arm in part.terms} | {arm.teacher for arm in self.arms if arm.teacher} | set(sum(self.lines.values(), ()))
        if len(set(names)) != len(names) or not wrong <= set(names):
            told = ", ".join(sorted(wrong - set(names))) or "the same name twice"
            raise ValueError(f"claim {self.name}: expected arms of different names that its parts know, got {told}")


def by_name(arms: tuple[Arm, ...]) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms}


def plain(value: Interval | None) -> dict[str, Any]:
    """For JSON."""
    return {} if value is None else value._asdict()
