"""One look for every plot of the library: colours that survive colour blindness and grey printing, and labels that can be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Okabe and Ito's palette
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666"
SERIES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY)
# light to dark, even in brightness
SEQUENTIAL = "cividis"
# from nothing, white as the paper
SHARES = "Blues"

_STYLE = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@contextmanager
def figure(path: Path | str, width: float = 7.0, height: float = 3.8) -> Iterator[Any]:
    """A matplotlib figure in inches, saved as `path` at the end of the block. No window, and nothing of pyplot's state."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots: expected matplotlib to be installed, got no such package; try pip install 'vtkernels[train]'") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn
        drawn.savefig(path, dpi=144)
