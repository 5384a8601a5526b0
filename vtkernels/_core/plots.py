"""One look for every plot of the library: colours that survive colour blindness and grey printing, and labels that can be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Okabe and Ito's palette without its yellow, which is too pale for lines on white
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666", "#000000"
SERIES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY)
# with the colours, so that lines differ in print without colours, too
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# light to dark, even in brightness
SEQUENTIAL = "cividis"
# from nothing, white as the paper
SHARES = "Blues"

_STYLE = {
    "image.cmap": SEQUENTIAL,
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
    "savefig.dpi": 144,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@contextmanager
def styled() -> Iterator[None]:
    """The style, for figures that are made and saved inside; the caller's own settings are untouched."""
    with _matplotlib().rc_context(_STYLE):
        yield


@contextmanager
def figure(path: Path | str, width: float = 7.0, height: float = 3.8) -> Iterator[Any]:
    """A figure in inches, in the style, saved as `path` at the end of the block."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with styled():
        drawn = _figure(width, height)
        yield drawn
        drawn.savefig(path)


def subplots(rows: int = 1, columns: int = 1, width: float | None = None, height: float | None = None, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, to be used and saved inside `styled`; by default each panel is 5.2 by 3.6 inches."""
    drawn = _figure(width or 5.2 * columns, height or 3.6 * rows)
    return drawn, drawn.subplots(rows, columns, **options)


def images_only(axes: Any) -> None:
    """For axes that show an image: neither ticks nor grid nor frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _figure(width: float, height: float) -> Any:
    """No window, nothing of pyplot's state, and gone with its last reference."""
    _matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots: expected matplotlib to be installed, got no such package; try pip install 'vtkernels[train]'") from error
    return matplotlib
