"""Plots drawn from the benchmarks' JSON: `python benchmarks/plots.py results/<device>/<file>.json ...`"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TITLES = {"forward": "forward", "training": "forward + backward"}


@dataclass(frozen=True)
class Style:
    """How the rows of one benchmark are drawn."""

    title: str
    panels: dict[str, str]  # title of each phase's panel
    baseline: tuple[str, str]  # the key of the speed-up that is drawn beside that over the fastest peer, and its label
    label: Callable[[dict], str]
    comparison: Callable[[dict], dict] = lambda row: row  # where in a row the speed-ups are


def _attention_label(row: dict) -> str:
    shape = row["shape"]
    return f"{shape['size']}x{shape['size']}\nC={shape['channels']}\nw{shape['window']} s{shape['shift']}"


def _list_label(row: dict) -> str:
    return f"{row['name']}\n{row['parameters'] / 1e6:.1f} M\n{row['ours']['share_of_control']:.0%} of control"


def _classes_label(row: dict) -> str:
    return f"K={row['classes']}\nB={row['batch']}"


def _pairs_label(row: dict) -> str:
    shape = row["shape"]
    return f"B={shape['batch']}\n{shape['edge']}x{shape['edge']}\nC={shape['channels']}\nm={shape['pairs']}"


def _tokens_label(row: dict) -> str:
    shape = row["shape"]
    return f"{shape['tokens']} tokens\nC={shape['channels']}\nh={shape['heads']}"


STYLES = {
    "class_attention": Style("class attention, projections included", TITLES, ("over_module", "over timm's module"), _tokens_label),
    "window_attention": Style("window attention", TITLES, ("over_eager", "over eager PyTorch"), _attention_label),
    "drloc_pairs": Style("DRLOC pairs", TITLES, ("over_published", "over the published algorithm"), _pairs_label),
    "talking_heads_attention": Style("talking-heads attention", TITLES, ("over_eager", "over timm's eager lines"), lambda row: row["name"].replace("/", "\n")),
    "linear": Style("linear layers and MLPs of Swin-T", TITLES, ("over_eager", "over eager PyTorch"), lambda row: row["name"].replace("/", "\n")),
    "sam": Style(
        "SAM step",
        {"sgd": "SAM + SGD with momentum", "adamw": "SAM + AdamW"},
        ("over_published", "over the published loop"),
        _list_label,
        lambda row: row.get("ours", {}),
    ),
    "jsd": Style("AugMix loss", TITLES, ("over_published", "over the published code"), _classes_label, lambda row: row if "us" in row else {}),
}


def draw(path: Path) -> Path | None:
    """Speed-up per row and phase, over the baseline and over the fastest peer of each row; None without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)")
        return None
    result = json.loads(path.read_text())
    style = STYLES[result["benchmark"]]
    panels = [(phase, [row for row in result["rows"] if row["phase"] == phase and style.comparison(row).get("fastest")]) for phase in style.panels]
    panels = [(phase, rows) for phase, rows in panels if rows]
    if not panels:
        print("no plot: nothing was compared")
        return None
    width = max(8.0, 1.6 + 0.75 * max(len(rows) for _, rows in panels))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(width, 3.3 * len(panels)), squeeze=False, layout="constrained")
    for axis, (phase, rows) in zip(axes[:, 0], panels, strict=True):
        _bars(axis, rows, style)
        axis.set_title(f"{style.panels[phase]}, {result['dtype']}", fontsize=10, loc="left")
    axes[0, 0].legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    environment = result["environment"]
    backends = "/".join(dict.fromkeys(row["backend"] for _, rows in panels for row in rows))
    threads = f", threads: {environment['threads']}" if result["device"] == "cpu" else ""
    figure.suptitle(f"{style.title}: speed-up of vtkernels ({backends}) on {environment['device']}{threads}", fontsize=11)
    image = path.with_suffix(".png")
    figure.savefig(image, dpi=130)
    pyplot.close(figure)
    return image


def _bars(axis, rows: list[dict], style: Style) -> None:
    positions = range(len(rows))
    compared = [style.comparison(row) for row in rows]
    key, label = style.baseline
    axis.bar([p - 0.2 for p in positions], [found[key] or 0.0 for found in compared], 0.38, label=label, color="#b8c4d6")
    best = [found["fastest"] for found in compared]
    bars = axis.bar([p + 0.2 for p in positions], [peer["ratio"] for peer in best], 0.38, label="over the fastest peer (named)", color="#2a5c9a")
    height = axis.get_ylim()[1]
    for bar, peer in zip(bars, best, strict=True):
        # at the foot of its bar, or above one that is too short for a name
        short = peer["ratio"] < 0.02 * height * len(peer["name"])
        place = (bar.get_x() + bar.get_width() / 2, peer["ratio"] if short else 0.0)
        look = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 7, "color": "black" if short else "white"}
        axis.annotate(peer["name"], place, (0, 3), textcoords="offset points", **look)
    # behind the bars, as their peers' names stand at their feet
    axis.axhline(1.0, color="black", linewidth=0.8, zorder=0.5)
    axis.set_xticks(list(positions), [style.label(row) for row in rows], fontsize=7)
    axis.set_ylabel("times faster")
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        print(draw(Path(argument)))
