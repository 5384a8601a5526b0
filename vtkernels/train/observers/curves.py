"""Curves of a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtkernels._core.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SERIES, SKY, VERMILION, figure
from vtkernels.train.observers.words import is_share
from vtkernels.train.records import EpochRecord

Points = list[tuple[float, float]]
# a line of more points than pixels says no more
MOST_POINTS = 1500
# the same measure has the same colour in every plot
LOOKS = {"train": BLUE, "valid": VERMILION, "ema": GREEN}
ACTIVITIES = {"compute": BLUE, "data": ORANGE, "valid": GREEN, "save": PURPLE}


def draw_curves(steps: Sequence[dict[str, Any]], epochs: Sequence[EpochRecord], folder: Path) -> dict[str, Path]:
    """The plots that the records allow, by name."""
    drawn = {
        "loss": lambda path: loss_curves(steps, epochs, path),
        "accuracy": lambda path: accuracy_curves(epochs, path),
        "lr": lambda path: line(_of_steps(steps, "lr"), "learning rate", path),
        "grad_norm": lambda path: line(_of_steps(steps, "grad_norm"), "norm of the gradient", path, log=True),
        "parts": lambda path: part_curves(steps, path),
        "timing": lambda path: timing_bars(epochs, path),
        "speed": lambda path: line(_of_steps(steps, "images_per_second"), "images per second", path, from_zero=True),
    }
    paths = {name: folder / f"{name}.png" for name in drawn}
    return {name: paths[name] for name, draw in drawn.items() if draw(paths[name])}


def loss_curves(steps: Sequence[dict[str, Any]], epochs: Sequence[EpochRecord], path: Path) -> bool:
    single = thinned(_of_steps(steps, "loss"))
    curves = {name: _of_epochs(epochs, name, "loss") for name in LOOKS}
    # the mean of an epoch belongs to its middle, what was evaluated after it to its end
    curves["train"] = [(t - 0.5, y) for t, y in curves["train"]]
    if not single and not any(curves.values()):
        return False
    with figure(path) as drawn:
        axes = drawn.subplots()
        if single:
            axes.plot(*zip(*single, strict=True), color=SKY, linewidth=0.9, alpha=0.8, label="train, single updates")
        _plot(axes, {"train": "train, mean of the epoch", "valid": "validation", "ema": "validation, averaged weights"}, curves)
        _label(axes, "loss")
        _legend(axes)
    return True


def accuracy_curves(epochs: Sequence[EpochRecord], path: Path) -> bool:
    names = [name for name in dict.fromkeys(name for record in epochs for name in (record.valid or {})) if is_share(name)]
    curves = {(group, name): [(t, 100 * y) for t, y in _of_epochs(epochs, group, name)] for name in names for group in ("valid", "ema")}
    curves = {key: points for key, points in curves.items() if points}
    if not curves:
        return False
    with figure(path) as drawn:
        axes = drawn.subplots()
        for (group, name), points in curves.items():
            main = name == names[0]
            label = name + (", averaged weights" if group == "ema" else "")
            axes.plot(*zip(*points, strict=True), color=LOOKS[group], linestyle="-" if main else ":", label=label, **_marks(points))
        best = [record.epoch for record in epochs if record.best]
        if best:
            axes.axvline(best[-1], color=GREY, linewidth=1, linestyle="--", label=f"best epoch: {best[-1]}")
        _label(axes, "accuracy in %")
        _legend(axes)
    return True


def part_curves(steps: Sequence[dict[str, Any]], path: Path) -> bool:
    """What the task logs: auxiliary losses, say."""
    names = list(dict.fromkeys(name for step in steps for name in (step.get("logs") or {})))
    curves = {name: thinned(_finite((step["epoch"], (step.get("logs") or {}).get(name)) for step in steps)) for name in names}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return False
    with figure(path) as drawn:
        axes = drawn.subplots()
        for colour, (name, points) in zip(SERIES * len(curves), curves.items(), strict=False):
            axes.plot(*zip(*points, strict=True), color=colour, label=name, linewidth=1.2, **_marks(points))
        _label(axes, "logged by the task")
        _legend(axes)
    return True


def timing_bars(epochs: Sequence[EpochRecord], path: Path) -> bool:
    records = [record for record in epochs if record.seconds]
    if not records:
        return False
    with figure(path) as drawn:
        axes = drawn.subplots()
        places, bottom = [record.epoch for record in records], [0.0] * len(records)
        whole = sum(sum(record.seconds.values()) for record in records) or 1.0
        # gaps narrower than a pixel would make stripes
        width = 0.85 if len(records) <= 50 else 1.0
        for name, colour in ACTIVITIES.items():
            seconds = [record.seconds.get(name, 0.0) for record in records]
            if any(seconds):
                label = f"{name}: {100 * sum(seconds) / whole:.1f} %"
                axes.bar(places, seconds, width, bottom, color=colour, label=label)
                bottom = [low + more for low, more in zip(bottom, seconds, strict=True)]
        axes.set(xlim=(places[0] - 0.6, places[-1] + 0.6), ylim=(0, max(bottom) * 1.2 or 1.0))
        _label(axes, "seconds")
        axes.grid(axis="x", visible=False)
        axes.legend(ncols=4, loc="upper left")
    return True


def line(points: Points, label: str, path: Path, *, log: bool = False, from_zero: bool = False) -> bool:
    points = thinned([(t, y) for t, y in points if y > 0 or not log])
    if not points:
        return False
    with figure(path, height=2.6) as drawn:
        axes = drawn.subplots()
        axes.plot(*zip(*points, strict=True), color=BLUE, linewidth=1.2, **_marks(points))
        _label(axes, label)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 5))
        if log and max(y for _, y in points) > 30 * min(y for _, y in points):
            axes.set_yscale("log")
        elif from_zero:
            axes.set_ylim(bottom=0)
    return True


def thinned(points: Points) -> Points:
    """At most `MOST_POINTS`, each the mean of its neighbours."""
    size = math.ceil(len(points) / MOST_POINTS)
    chunks = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [tuple(sum(column) / len(chunk) for column in zip(*chunk, strict=True)) for chunk in chunks]


def _plot(axes: Any, labels: dict[str, str], curves: dict[str, Points]) -> None:
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), color=LOOKS[name], label=labels[name], **_marks(points))


def _marks(points: Points) -> dict[str, Any]:
    """Of few points, each is to be seen: a line through a single one would show nothing."""
    return {"marker": "o"} if len(points) <= 30 else {}


def _label(axes: Any, what: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epoch", ylabel=what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")


def _of_steps(steps: Sequence[dict[str, Any]], name: str) -> Points:
    return _finite((step["epoch"], step.get(name)) for step in steps)


def _of_epochs(epochs: Sequence[EpochRecord], group: str, name: str) -> Points:
    return _finite((record.epoch, (getattr(record, group) or {}).get(name)) for record in epochs)


def _finite(points: Any) -> Points:
    return [(t, y) for t, y in points if y is not None and math.isfinite(y)]
