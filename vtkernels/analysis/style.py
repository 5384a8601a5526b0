"""One look for all pictures: colours that colour-blind readers can tell apart, plain axes, labels one can read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is too pale for lines on white
COLORS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "black": "#000000",
}
# with the colours, so that lines differ in print without colours, too
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# perceptually even, and read alike by everybody: for amounts, and for amounts around zero
SEQUENTIAL, DIVERGING = "cividis", "PuOr"
COLUMN_WIDTH, HEIGHT = 5.2, 3.6  # inches of one panel

_STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "image.cmap": SEQUENTIAL,
}


@contextmanager
def applied() -> Iterator[None]:
    """The style, for figures that are made and saved inside; the caller's own settings are untouched."""
    matplotlib = _matplotlib()
    with matplotlib.rc_context({**_STYLE, "axes.prop_cycle": matplotlib.cycler(color=list(COLORS.values()))}):
        yield


def subplots(rows: int = 1, columns: int = 1, width: float | None = None, height: float | None = None, **options: Any) -> tuple["Figure", Any]:
    """A figure and its axes, as pyplot's function of this name, but without a window, and gone with its last reference."""
    _matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width or COLUMN_WIDTH * columns, height or HEIGHT * rows))
    return figure, figure.subplots(rows, columns, **options)


def images_only(axes: "Axes") -> None:
    """For axes that show an image: neither ticks nor grid nor frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ImportError("vtkernels.analysis: expected matplotlib for pictures, got no such package; try pip install 'vtkernels[train]'") from None
    return matplotlib
