"""Plots of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from vtkernels._core.plots import BLUE, GREY, ORANGE, SHARES, VERMILION, figure
from vtkernels.evaluation.calibration import Reliability

# more classes than these are drawn without names, and without numbers
MOST_NAMES, MOST_NUMBERS = 40, 15


def confusion_plot(confusion: Tensor, names: Sequence[str], path: str | Path, *, title: str = "") -> Path:
    """Rows as shares of their class; darker is more."""
    shares = confusion.double() / confusion.sum(dim=1, keepdim=True).clamp_min(1)
    size, named = len(confusion), len(confusion) <= MOST_NAMES
    edge = min(14.0, max(4.5, 2.0 + (0.45 if size <= MOST_NUMBERS else 0.25) * size)) if named else 8.0
    with figure(path, edge + 1.0, edge) as drawn:
        axes = drawn.subplots()
        image = axes.imshow(shares.numpy(), cmap=SHARES, vmin=0, vmax=1, interpolation="nearest" if named else "antialiased")
        drawn.colorbar(image, ax=axes, label="share of the class", fraction=0.046, pad=0.03)
        axes.set(xlabel="predicted", ylabel="true", title=title)
        axes.grid(visible=False)
        if named:
            short = [name if len(name) <= 18 else name[:17] + "…" for name in names]
            axes.set_xticks(range(size), short, rotation=90 if max(map(len, short)) > 2 else 0)
            axes.set_yticks(range(size), short)
        if size <= MOST_NUMBERS:
            for row, column in confusion.nonzero().tolist():
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(confusion[row, column].item()), ha="center", va="center", fontsize=8, color=color)
    return Path(path)


def reliability_plot(reliability: Reliability, path: str | Path, *, title: str = "") -> Path:
    """Accuracy over confidence: bars below the diagonal are overconfident. Beneath, how many samples each bar stands for."""
    edges, filled = reliability.edges.numpy(), (reliability.counts > 0).numpy()
    left, width = edges[:-1][filled], (edges[1:] - edges[:-1])[filled]
    accuracy, confidence = reliability.accuracy.numpy()[filled], reliability.confidence.numpy()[filled]
    errors = f"ECE {100 * reliability.error('mean'):.2f} %   RMS {100 * reliability.error('rms'):.2f} %   MCE {100 * reliability.error('max'):.2f} %"
    with figure(path, 5.0, 5.8) as drawn:
        above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.bar(left, accuracy, width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
        gap = {"align": "edge", "facecolor": "none", "edgecolor": VERMILION, "hatch": "////", "linewidth": 0.8}
        above.bar(left, confidence - accuracy, width, accuracy, label="gap to the confidence", **gap)
        above.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
        above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"{title}\n{errors}" if title else errors)
        below.bar(left, reliability.counts.numpy()[filled] / reliability.counts.sum().item(), width, align="edge", color=ORANGE, edgecolor="white")
        below.set(xlabel="confidence", ylabel="share")
        drawn.legend(loc="outside lower center", ncols=3)
    return Path(path)


def corruption_plot(errors: Mapping[str, Mapping[int, float]], clean_error: float | None, path: str | Path, *, title: str = "") -> Path:
    """Bars of the mean error of each corruption, with a mark for each severity."""
    highest = max(error for own in errors.values() for error in own.values())
    mark = {"marker": "o", "markersize": 3.5, "color": ORANGE, "markeredgecolor": "black", "markeredgewidth": 0.5, "linestyle": "none"}
    with figure(path, max(5.0, 1.8 + 0.45 * len(errors)), 4.8) as drawn:
        axes = drawn.subplots()
        means = [100 * sum(own.values()) / len(own) for own in errors.values()]
        axes.bar(range(len(errors)), means, color=BLUE, width=0.75, label="mean of the severities")
        marks = [(place + 0.12 * (severity - 3), 100 * error) for place, own in enumerate(errors.values()) for severity, error in own.items()]
        axes.plot(*zip(*marks, strict=True), label="severity 1 to 5, left to right", **mark)
        if clean_error is not None:
            axes.axhline(100 * clean_error, color="black", linestyle="--", linewidth=1, label=f"clean: {100 * clean_error:.1f} %")
        axes.set_xticks(range(len(errors)), [name.replace("_", " ") for name in errors], rotation=60, ha="right", rotation_mode="anchor")
        axes.grid(axis="x", visible=False)
        # room for the legend above the bars
        axes.set(ylabel="top-1 error in %", ylim=(0, max(1.0, 100 * highest, 100 * (clean_error or 0)) * 1.3), xlim=(-0.6, len(errors) - 0.4), title=title)
        axes.legend(loc="upper left", ncols=1 if len(errors) < 10 else 3)
    return Path(path)
