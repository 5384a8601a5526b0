"""A claim's result: what each arm reached, what became of each part, in numbers, words and a picture."""

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.claims import judgement
from benchmarks.claims.claim import Arm, Claim, Results, Setting, plain
from vtkernels._core import plots
from vtkernels.recipes._json import encoded

COLORS = {
    judgement.HELD: plots.GREEN,
    judgement.WEAKLY: plots.ORANGE,
    judgement.NOT: plots.GREY,
    judgement.OPPOSITE: plots.VERMILION,
    judgement.UNKNOWN: plots.SKY,
}


def result_of(claim: Claim, setting: Setting, results: Results, seconds: float, device: str) -> dict[str, Any]:
    parts = []
    for part in claim.parts:
        found = part.interval(results)
        about = {"says": part.says, "metric": part.metric, "unit": part.unit, "terms": dict(part.terms)}
        parts.append(about | {"verdict": judgement.verdict(found)} | plain(found))
    first = flat(encoded(claim.arms[0].recipe))
    return {
        "benchmark": "claim",
        "claim": claim.name,
        "title": claim.title,
        "says": claim.says,
        "source": claim.source,
        "limits": claim.limits if setting.scale == "tiny" else "",
        "device": device,
        "environment": report.environment(device),
        "scale": setting.scale,
        "updates": setting.updates if setting.scale == "tiny" else None,
        "rule": " ".join(judgement.__doc__.split("\n\n")[1].split()),
        "words": in_words(parts),
        "parts": parts,
        "metric": claim.metric,
        "label": claim.label,
        "lines": {name: list(arms) for name, arms in claim.lines.items()},
        "places": list(claim.places),
        "place_label": claim.place_label,
        "paired_lines": claim.paired_lines,
        "arms": {arm.name: reached(results[arm.name]) | {"changes": changes(first, arm)} for arm in claim.arms},
        "recipe_of_first_arm": encoded(claim.arms[0].recipe),
        "seconds_of_all_runs": seconds,
    }


def reached(runs: dict[int, dict[str, float]]) -> dict[str, Any]:
    metrics = sorted(set().union(*runs.values()))
    values = {metric: {seed: run[metric] for seed, run in runs.items() if metric in run} for metric in metrics}
    return {"metrics": {metric: {"by_seed": own} | plain(judgement.interval(list(own.values()))) for metric, own in values.items()}}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {name: leaf for key, entry in value.items() for name, leaf in flat(entry, f"{path}.{key}" if path else key).items()}


def changes(first: dict[str, Any], arm: Arm) -> dict[str, Any]:
    """What an arm does otherwise than the first one."""
    recipe = flat(encoded(arm.recipe)) | ({"task.teacher": f"arm {arm.teacher!r}"} if arm.teacher else {})
    return {name: value for name, value in recipe.items() if name != "name" and (name not in first or first[name] != value)}


def in_words(parts: list[dict[str, Any]]) -> str:
    counts = Counter(part["verdict"] for part in parts)
    order = (judgement.HELD, judgement.WEAKLY, judgement.NOT, judgement.OPPOSITE, judgement.UNKNOWN)
    if len(counts) == 1:
        (verdict,) = counts
        return f"All {len(parts)} parts: {verdict}." if len(parts) > 1 else f"{verdict.capitalize()}."
    return f"Of {len(parts)} parts: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in order if counts[verdict]) + "."


def told(part: dict[str, Any], digits: int = 2) -> str:
    """A part's mean and interval."""
    if part.get("mean") is None:
        return "no runs"
    if part.get("low") is None:
        return f"{part['mean']:+.{digits}f} {part['unit']} (one seed)"
    return f"{part['mean']:+.{digits}f} [{part['low']:+.{digits}f}, {part['high']:+.{digits}f}] {part['unit']}"


def show(result: dict[str, Any]) -> None:
    rows = []
    for name, arm in result["arms"].items():
        cells = [arm["metrics"].get(metric) for metric in metrics_of(result)]
        rows.append([name, *("-" if cell is None else f"{cell['mean']:.2f}" + margin(cell) for cell in cells)])
    report.print_table("arms: mean and 95 % interval", ["arm", *metrics_of(result)], rows)
    rows = [[part["says"], told(part), str(part.get("count", 0)), part["verdict"]] for part in result["parts"]]
    report.print_table("parts: paired differences", ["part", "mean [95 % interval]", "seeds", "verdict"], rows)
    print(f"\n{result['words']}")


def metrics_of(result: dict[str, Any]) -> list[str]:
    return sorted(set().union(*(arm["metrics"] for arm in result["arms"].values())) - {"train_loss", "diverged"})


def margin(cell: dict[str, Any]) -> str:
    return "" if cell["low"] is None else f" ± {cell['mean'] - cell['low']:.2f}"


def drawn(result: dict[str, Any], path: Path) -> Path | None:
    """Arms on the left, the parts' differences on the right, a panel for each unit; None without matplotlib."""
    by_unit = {unit: [part for part in result["parts"] if part["unit"] == unit] for unit in dict.fromkeys(part["unit"] for part in result["parts"])}
    rows = max(len(result["parts"]) + 3 * (len(by_unit) - 1), 0 if result["lines"] else len(result["arms"]), 8)
    seeds = max((part.get("count", 0) for part in result["parts"]), default=0)
    told = f"{result['scale']} scale, {seeds} seed{'s' * (seeds != 1)}, 95 % intervals"
    try:
        with plots.figure(path, width=13.0, height=1.7 + 0.27 * rows) as figure:
            figure.suptitle(f"{result['title']}. {result['words']} ({told})", fontsize=12, x=0.01, ha="left")
            left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
            if result["paired_lines"]:
                draw_pairs(left, result)
            else:
                (draw_lines if result["lines"] else draw_arms)(left.subplots(), result)
            panels = right.subplots(len(by_unit), 1, squeeze=False, height_ratios=[len(parts) + 1 for parts in by_unit.values()])
            for axes, parts in zip(panels[:, 0], by_unit.values(), strict=True):
                draw_parts(axes, parts)
            # above labels and panels: a long one would not fit over a panel
            right.suptitle("parts of the claim: as promised right of the line", fontsize=11)
    except ImportError as error:
        print(f"no picture: {error}")
        return None
    return path


def draw_arms(axes: Any, result: dict[str, Any]) -> None:
    found = [(name, arm["metrics"][result["metric"]]) for name, arm in result["arms"].items() if result["metric"] in arm["metrics"]]
    for row, (_, cell) in enumerate(found):
        axes.errorbar(cell["mean"], row, xerr=error_of(cell), fmt="o", color=plots.BLUE, capsize=3)
        # below the interval, which would hide them
        axes.plot(list(cell["by_seed"].values()), [row + 0.25] * len(cell["by_seed"]), "o", color=plots.SKY, markersize=3)
    axes.set_yticks(range(len(found)), [name for name, _ in found])
    axes.invert_yaxis()
    axes.set_xlim(possible(axes.get_xlim(), result))
    axes.set(xlabel=result["label"], title="arms, and their single runs")


def draw_lines(axes: Any, result: dict[str, Any]) -> None:
    for index, (name, arms) in enumerate(result["lines"].items()):
        draw_line(axes, result, name, arms, plots.SERIES[index % len(plots.SERIES)], shift=1 + 0.015 * index)
    axes.set_ylim(possible(axes.get_ylim(), result))
    axes.set(xlabel=result["place_label"], ylabel=result["label"], title="arms")
    axes.legend(fontsize=8, ncols=2)


def draw_pairs(figure: Any, result: dict[str, Any]) -> None:
    """A small panel for each two lines: more than six in one cannot be told apart."""
    lines = list(result["lines"].items())
    count = (len(lines) + 1) // 2
    panels = figure.subplots((count + 1) // 2, 2, squeeze=False, sharex=True, sharey=True)
    for index, axes in enumerate(panels.flat):
        for (name, arms), color, shift in zip(lines[2 * index : 2 * index + 2], (plots.BLUE, plots.VERMILION), (1.0, 1.04), strict=False):
            draw_line(axes, result, name, arms, color, shift)
        if index < count:
            axes.legend(fontsize=8)
        else:
            axes.set_axis_off()
    panels[0, 0].set_ylim(possible(panels[0, 0].get_ylim(), result))
    figure.suptitle("arms", fontsize=11, x=0.1, ha="left")
    figure.supxlabel(result["place_label"], fontsize=10)
    figure.supylabel(result["label"], fontsize=10)


def draw_line(axes: Any, result: dict[str, Any], name: str, arms: list[str], color: str, shift: float) -> None:
    """`shift`: of its places to the right, by which lines do not hide each other."""
    cells = [(place, result["arms"][arm]["metrics"].get(result["metric"])) for place, arm in zip(result["places"], arms, strict=True)]
    cells = [(place * shift, cell) for place, cell in cells if cell]
    if not cells:
        return
    errors = [[error_of(cell)[side][0] for _, cell in cells] for side in (0, 1)]
    places, means = zip(*((place, cell["mean"]) for place, cell in cells), strict=True)
    axes.errorbar(places, means, yerr=errors, marker="o", capsize=3, color=color, label=name)
    axes.set_xscale("log")
    axes.set_xticks(result["places"], [f"{place:g}" for place in result["places"]])
    axes.minorticks_off()


def possible(limits: tuple[float, float], result: dict[str, Any]) -> tuple[float, float]:
    """Of these limits of an axis, what values can reach: the interval of few seeds knows no bounds."""
    low, high = limits
    return (max(low, 0.0), min(high, 100.5)) if "%" in result["label"] else limits


def error_of(cell: dict[str, Any]) -> list[list[float]]:
    """Distances down and up, as matplotlib takes them."""
    if cell["low"] is None:
        return [[0.0], [0.0]]
    return [[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]]


def draw_parts(axes: Any, parts: list[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for row, part in enumerate(parts):
        if part.get("mean") is None:
            continue
        label = None if part["verdict"] in seen else part["verdict"]
        seen.add(part["verdict"])
        axes.errorbar(part["mean"], row, xerr=error_of(part), fmt="o", color=COLORS[part["verdict"]], capsize=3, label=label)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(parts)), [part["says"] for part in parts])
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set(xlabel=f"paired difference ({parts[0]['unit']})")
    if seen:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
