"""Plots drawn from the benchmarks' JSON: `python benchmarks/plots.py results/<device>/<file>.json ...`"""

import json
import sys
from pathlib import Path

TITLES = {"forward": "forward", "training": "forward + backward"}


def draw(path: Path) -> Path | None:
    """Speed-up per shape and phase, over eager PyTorch and over the fastest peer of each shape; None without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)")
        return None
    result = json.loads(path.read_text())
    panels = [(phase, [row for row in result["rows"] if row["phase"] == phase and row.get("fastest")]) for phase in TITLES]
    panels = [(phase, rows) for phase, rows in panels if rows]
    if not panels:
        print("no plot: nothing was compared")
        return None
    width = max(6.0, 1.6 + 0.75 * max(len(rows) for _, rows in panels))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(width, 3.3 * len(panels)), squeeze=False, layout="constrained")
    for axis, (phase, rows) in zip(axes[:, 0], panels, strict=True):
        _bars(axis, rows)
        axis.set_title(f"{TITLES[phase]}, {result['dtype']}", fontsize=10, loc="left")
    axes[0, 0].legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    environment = result["environment"]
    backends = "/".join(dict.fromkeys(row["backend"] for _, rows in panels for row in rows))
    threads = f", threads: {environment['threads']}" if result["device"] == "cpu" else ""
    figure.suptitle(f"window attention: speed-up of vtkernels ({backends}) on {environment['device']}{threads}", fontsize=11)
    image = path.with_suffix(".png")
    figure.savefig(image, dpi=130)
    pyplot.close(figure)
    return image


def _bars(axis, rows: list[dict]) -> None:
    positions = range(len(rows))
    over_eager = [row["over_eager"] or 0.0 for row in rows]
    over_best = [row["fastest"]["ratio"] for row in rows]
    axis.bar([p - 0.2 for p in positions], over_eager, 0.38, label="over eager PyTorch", color="#b8c4d6")
    bars = axis.bar([p + 0.2 for p in positions], over_best, 0.38, label="over the fastest peer (named)", color="#2a5c9a")
    for bar, row in zip(bars, rows, strict=True):
        axis.annotate(
            row["fastest"]["name"],
            (bar.get_x() + bar.get_width() / 2, 0.0),
            (0, 3),
            textcoords="offset points",
            rotation=90,
            ha="center",
            fontsize=6,
            color="white",
        )
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks(list(positions), [_label(row) for row in rows], fontsize=7)
    axis.set_ylabel("times faster")
    axis.spines[["top", "right"]].set_visible(False)


def _label(row: dict) -> str:
    shape = row["shape"]
    return f"{shape['size']}x{shape['size']}\nC={shape['channels']}\nw{shape['window']} s{shape['shift']}"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        print(draw(Path(argument)))
