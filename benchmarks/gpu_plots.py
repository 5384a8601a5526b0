"""Plots of what the GPU scripts measured: `python benchmarks/gpu_plots.py results/<device>/gpu_check.json results/<device>/gpu_models.json`"""

import json
import sys
from pathlib import Path
from typing import Any

from attn_sides import OURS

COLOURS = {"forward": "#2a5c9a", "backward": "#8fb0d9", "training": "#c9814b"}


def draw(path: Path) -> Path | None:
    """A picture beside the JSON; None without matplotlib, or with nothing to draw."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)")
        return None
    result = json.loads(path.read_text())
    panels = {"gpu_check": _check_panels, "gpu_models": _model_panels}[result["benchmark"]](result)
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        print("no plot: nothing was timed")
        return None
    width = max(8.0, 1.6 + 0.55 * max(len(groups) for _, groups, _ in panels))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(width, 3.6 * len(panels)), squeeze=False, layout="constrained")
    for axis, (title, groups, marks) in zip(axes[:, 0], panels, strict=True):
        _bars(axis, title, groups, marks)
    environment = result["environment"]
    figure.suptitle(f"{environment['device']}, torch {environment['versions']['torch']}{' (a dry run)' if result['dry'] else ''}", fontsize=11)
    image = path.with_suffix(".png")
    figure.savefig(image, dpi=130)
    pyplot.close(figure)
    return image


Groups = dict[str, dict[str, float]]
# title, heights by group and by series, and where a bar has to reach
Panel = tuple[str, Groups, dict[tuple[str, str], float]]


def _check_panels(result: dict[str, Any]) -> list[Panel]:
    shares, speedups, goals = {}, {}, {}
    for row in result["rows"]:
        if "device_ms" not in row:
            continue
        group = f"{row['op'].removesuffix('_attention')}\n{row['case']}"
        if row["share_of_copy"] is not None and row["phase"] != "training":
            shares.setdefault(group, {})[row["phase"]] = row["share_of_copy"]
            for bar in row["bars"]:
                if bar["what"] == "share of copy":
                    goals[group, row["phase"]] = bar["least"]
        if row["ratio"]:
            # eager peers in one row, compiled ones in another
            least = speedups.setdefault(group, {})
            least[row["phase"]] = min([*row["ratio"].values(), *([least[row["phase"]]] if row["phase"] in least else [])])
    sam: Groups = {row["case"].replace(", ", "\n"): row["share_of_copy"] for row in result["sam"] if row["share_of_copy"]}
    return [
        ("share of the measured copy bandwidth (line: the goal)", shares, goals),
        ("times faster than the fastest peer", speedups, {}),
        ("SAM steps: share of the measured copy bandwidth", sam, {}),
    ]


def _model_panels(result: dict[str, Any]) -> list[Panel]:
    panels = []
    for mode in dict.fromkeys(row["mode"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["mode"] == mode and row.get("images_per_second")]
        panels.append((f"{mode}: images a second", {row["model"].replace("_patch", "\npatch"): row["images_per_second"] for row in rows}, {}))
        panels.append((f"{mode}: peak memory, GB", {row["model"].replace("_patch", "\npatch"): row["peak_GB"] for row in rows if row.get("peak_GB")}, {}))
    return panels


def _bars(axis: Any, title: str, groups: Groups, marks: dict[tuple[str, str], float]) -> None:
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    # ours first
    series.sort(key=lambda name: not name.startswith((OURS, *COLOURS)))
    width = 0.84 / len(series)
    for number, name in enumerate(series):
        places = [(place, heights[name], group) for place, (group, heights) in enumerate(groups.items()) if name in heights]
        left = [place + (number - (len(series) - 1) / 2) * width for place, _, _ in places]
        axis.bar(left, [height for _, height, _ in places], 0.94 * width, label=name, color=COLOURS.get(name))
        for at, (_, _, group) in zip(left, places, strict=True):
            if (group, name) in marks:
                axis.hlines(marks[group, name], at - width / 2, at + width / 2, color="black", linewidth=1.2)
    axis.set_xticks(range(len(groups)), list(groups), fontsize=6, rotation=90)
    axis.set_title(title, fontsize=10, loc="left")
    axis.legend(fontsize=7, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        print(draw(Path(argument)))
