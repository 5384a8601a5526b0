"""The loss around a model's weights, along random directions, and on the way to another model's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from vtkernels._core import plots
from vtkernels._core.check import fail
from vtkernels.analysis._loss import Criterion, Loss, working_copy
from vtkernels.analysis._progress import progress
from vtkernels.analysis._result import Result
from vtkernels.analysis._subject import SubjectOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMS = ("filter", "none")
# what a curve or surface is cut off at, for the picture
CAP = 5.0


@dataclass(frozen=True, kw_only=True)
class Options(SubjectOptions):
    """Options of `vtkernels analyze landscape`.

    Attributes:
        split: of the data set; the images are not augmented.
        samples: images that the loss is averaged over.
        points: of the grid on each axis, an odd number; published surfaces have 51.
        span: the grid goes from -span to span.
        norm: filter, which makes each filter of a direction as long as the weights' and leaves biases and norms alone, or none.
        surface: whether to compute the plane of two directions, too.
        other: a second model, a name or the folder of a run: the loss on the line between the two.
        other_checkpoint: weights of the second model where it is a name.
        line_points: points of that line, from -0.5 to 1.5.
        states: interpolate running statistics, too; else they are computed anew at each point.
    """

    split: str = "train"
    samples: int | None = 256
    batch_size: int = 256
    points: int = 21
    span: float = 1.0
    norm: str = "filter"
    surface: bool = True
    other: str | None = None
    other_checkpoint: str | None = None
    line_points: int = 41
    states: bool = True


@dataclass
class Landscape(Result):
    """Losses on lines and on a plane through the weights; NaN where the work was interrupted.

    Attributes:
        steps: positions on the axes, in units of the directions.
        lines: [2, points], along each of the two directions.
        surface: [points, points], by step along the first direction, then along the second; None if it was not asked for.
        line_steps, line_losses, line_accuracies: between two models, 0 the first and 1 the second.
    """

    name: ClassVar[str] = "landscape"
    seed: int = 0
    norm: str = "filter"
    samples: int = 0
    loss: float | None = None
    steps: list[float] = field(default_factory=list)
    lines: np.ndarray | None = None
    surface: np.ndarray | None = None
    line_steps: list[float] = field(default_factory=list)
    line_losses: np.ndarray | None = None
    line_accuracies: np.ndarray | None = None

    def summary(self) -> str:
        lines = [super().summary()]
        if self.loss is not None:
            lines.append(f"{'loss at the weights':40} {self.loss:.6g}")
        if self.lines is not None:
            ends = np.nanmax(self.lines) if np.isfinite(self.lines).any() else np.nan
            lines.append(f"{'highest on the two lines':40} {ends:.6g}")
        if self.line_losses is not None and np.isfinite(self.line_losses).any():
            between = [loss for step, loss in zip(self.line_steps, self.line_losses, strict=True) if 0 <= step <= 1]
            lines.append(f"{'barrier between the models':40} {np.nanmax(between) - max(between[0], between[-1]):.6g}")
        return "\n".join(lines)

    def draw(self) -> dict[str, "Figure"]:
        figures = {}
        if self.lines is not None:
            # interrupted on the lines, there is no plane yet
            plane = self.surface is not None and np.isfinite(self.surface).any()
            figure, axes = plots.subplots(1, 1 + plane, squeeze=False)
            self._draw_lines(axes[0, 0])
            if plane:
                self._draw_contours(figure, axes[0, 1])
                figures["landscape_3d"] = self._draw_3d()
            figures = {self.name: figure, **figures}
        if self.line_losses is not None:
            figures["interpolation"] = self._draw_interpolation()
        return figures

    def _draw_lines(self, axes: Any) -> None:
        for index, (losses, color) in enumerate(zip(self.lines, (plots.BLUE, plots.VERMILION), strict=True)):
            axes.plot(self.steps, np.minimum(losses, CAP), color=color, linestyle=("-", "--")[index], label=f"direction {index + 1}")
        cut = f" (cut off at {CAP:g})" if np.nanmax(self.lines, initial=0) > CAP else ""
        axes.set(xlabel="step along the direction", ylabel=f"loss{cut}", title="Loss along random directions", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(nbins=5)
        axes.legend()

    def _draw_contours(self, figure: "Figure", axes: Any) -> None:
        # the first direction to the right: it is the rows of the surface
        surface = np.ma.masked_invalid(self.surface.T)
        low, high = max(float(surface.min()), 1e-6), float(surface.max())
        levels = np.geomspace(low * 0.999, max(high, low * 1.01), 16)
        # the smallest positive loss is the lowest level: logarithms know no zero
        surface = np.ma.maximum(surface, low)
        filled = axes.contourf(self.steps, self.steps, surface, levels=levels, norm=_log_norm(levels), cmap=plots.SEQUENTIAL)
        axes.contour(self.steps, self.steps, surface, levels=levels, colors="white", linewidths=0.4)
        axes.plot(0, 0, marker="P", color=plots.VERMILION, markeredgecolor="white", markersize=9, linestyle="none", label="the weights")
        bar = figure.colorbar(filled, ax=axes, label="loss (logarithmic)")
        bar.set_ticks(levels[::3], labels=[f"{level:.3g}" for level in levels[::3]])
        bar.ax.minorticks_off()
        axes.set(xlabel="step along direction 1", ylabel="step along direction 2", title="Loss on their plane", aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(nbins=5)
        axes.legend(loc="upper right", frameon=True)

    def _draw_3d(self) -> "Figure":
        figure, axes = plots.subplots(width=5.6, height=4.6, subplot_kw={"projection": "3d"})
        first, second = np.meshgrid(self.steps, self.steps, indexing="ij")
        # matplotlib's solids have no logarithmic axis
        heights = np.log10(np.maximum(self.surface, 1e-6))
        axes.plot_surface(first, second, heights, cmap=plots.SEQUENTIAL, rcount=60, ccount=60, linewidth=0.2, edgecolor="white", antialiased=True)
        # slanted axes have room for three numbers
        places = [self.steps[0], 0.0, self.steps[-1]]
        axes.set(xlabel="step along direction 1", ylabel="step along direction 2", xticks=places, yticks=places)
        figure.suptitle("Loss on the plane of two directions", fontsize=11, x=0.02, ha="left")
        axes.set_zlabel("log10 of the loss", labelpad=8)
        axes.set_box_aspect(None, zoom=0.9)
        return figure

    def _draw_interpolation(self) -> "Figure":
        figure, axes = plots.subplots()
        axes.plot(self.line_steps, np.minimum(self.line_losses, CAP), color=plots.BLUE, label="loss")
        axes.set(xlabel="0: first model, 1: second model", ylabel="loss", title="Loss between two models")
        # room for the legend above both curves
        axes.set_ylim(0, 1.3 * np.nanmax(np.minimum(self.line_losses, CAP), initial=0.1))
        for place in (0, 1):
            axes.axvline(place, color=plots.BLACK, linestyle=":", linewidth=1)
        beside = axes.twinx()
        beside.plot(self.line_steps, 100 * self.line_accuracies, color=plots.VERMILION, linestyle="--", label="accuracy")
        beside.set(ylabel="accuracy (%)", ylim=(0, 130), yticks=range(0, 101, 20))
        beside.spines["right"].set_visible(True)
        beside.grid(False)
        axes.legend(handles=[*axes.get_lines()[:1], *beside.get_lines()], loc="upper center")
        return figure


def _log_norm(levels: np.ndarray) -> Any:
    from matplotlib.colors import LogNorm

    return LogNorm(levels[0], levels[-1])


def random_direction(parameters: Sequence[Tensor], seed: int, norm: str = "filter") -> list[Tensor]:
    """Normal numbers in the parameters' shapes.

    With norm="filter", each row of the first axis gets the length of the weights' own, and tensors of one dimension, biases and the scales of
    norms, get zeros.
    """
    if norm not in NORMS:
        fail("landscape", "norm", f"be one of {', '.join(NORMS)}", repr(norm))
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device) for value in parameters]
    if norm == "filter":
        drawn = [normalised_by_filter(direction, value) for direction, value in zip(drawn, parameters, strict=True)]
    return [direction.to(value.dtype) for direction, value in zip(drawn, parameters, strict=True)]


def normalised_by_filter(direction: Tensor, weight: Tensor) -> Tensor:
    """Rows of the first axis as long as the weight's; zeros for tensors of one dimension."""
    if weight.dim() < 2:
        return torch.zeros_like(direction)
    rows, lengths = direction.flatten(1), weight.detach().to(direction.dtype).flatten(1).norm(dim=1, keepdim=True)
    return (rows * (lengths / (rows.norm(dim=1, keepdim=True) + 1e-10))).view_as(direction)


def landscape(
    model: nn.Module,
    loader: Iterable[Any],
    criterion: Criterion = F.cross_entropy,
    *,
    points: int = 51,
    span: float = 1.0,
    norm: str = "filter",
    surface: bool = True,
    seed: int = 0,
) -> Landscape:
    """The loss along two random directions and on their plane; the same for the same seed. The model is left alone."""
    if points < 3 or points % 2 == 0:
        fail("landscape", "points", "be odd and at least 3", points, "the weights themselves are the middle one")
    loss = Loss(model, loader, criterion, who="landscape")
    first, second = (torch.cat([part.reshape(-1) for part in random_direction(loss.parameters, seed + offset, norm)]) for offset in (0, 1))
    half = points // 2
    steps = [span * index / half for index in range(-half, half + 1)]
    found = Landscape(seed=seed, norm=norm, samples=loss.count, steps=steps, lines=np.full((2, points), np.nan))
    if surface:
        found.surface = np.full((points, points), np.nan)
    with progress("landscape", points * (points + 2) if surface else 2 * points) as bar:
        found.loss = loss.value()
        for line, direction in zip(found.lines, (first, second), strict=True):
            for index in _outwards(points):
                line[index] = _loss_at(loss, steps[index] * direction)
                bar.advance(f"{line[index]:.4g}")
        if surface:
            for row in _outwards(points):
                for column in _outwards(points):
                    found.surface[row, column] = _loss_at(loss, steps[row] * first + steps[column] * second)
                    bar.advance()
    found.complete = not bar.interrupted
    return found


def _outwards(points: int) -> list[int]:
    """From the middle on: what is there after an interruption is what matters most."""
    return sorted(range(points), key=lambda index: abs(index - points // 2))


def _loss_at(loss: Loss, step: Tensor) -> float:
    """Far out, a model may well overflow: that is a loss without bounds, not an error."""
    try:
        with loss.moved(step):
            return loss.value()
    except ValueError:
        return float("inf")


def interpolation(
    first: nn.Module,
    second: nn.Module,
    loader: Iterable[Any],
    criterion: Criterion = F.cross_entropy,
    *,
    points: int = 401,
    low: float = -0.5,
    high: float = 1.5,
    states: bool = True,
) -> Landscape:
    """Loss and accuracy on the line between two models of one architecture, beyond both ends, too.

    Args:
        states: running statistics are interpolated as weights are; else they are computed anew, over the loader, at each point.
    """
    if points < 2:
        fail("landscape", "points", "be at least 2", points)
    loss = Loss(first, loader, criterion, who="landscape")
    start, end = _numbers(loss.model), _numbers(working_copy(second, loss.dtype, "landscape"))
    if {name: value.shape for name, value in start.items()} != {name: value.shape for name, value in end.items()}:
        odd = sorted(set(start) ^ set(end)) or [name for name in start if start[name].shape != end[name].shape]
        fail("landscape", "the second model", "have the first one's architecture", f"another {odd[0]}", "only such models have a line between them")
    steps = [low + (high - low) * index / (points - 1) for index in range(points)]
    found = Landscape(samples=loss.count, line_steps=steps, line_losses=np.full(points, np.nan), line_accuracies=np.full(points, np.nan))
    places = _numbers(loss.model, copied=False)
    with progress("landscape: interpolation", points) as bar, torch.no_grad():
        found.loss = loss.value()
        for index, step in enumerate(steps):
            for name, place in places.items():
                place.copy_((1 - step) * start[name] + step * end[name].to(place.device))
            if not states:
                _new_statistics(loss)
            found.line_losses[index] = _loss_at(loss, torch.zeros(loss.size, dtype=loss.dtype, device=loss.device))
            found.line_accuracies[index] = loss.accuracy()
            bar.advance(f"{found.line_losses[index]:.4g}")
    found.complete = not bar.interrupted
    return found


def _numbers(model: nn.Module, copied: bool = True) -> dict[str, Tensor]:
    """Weights and running statistics by name."""
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    return {name: value.clone() for name, value in state.items()} if copied else state


def _new_statistics(loss: Loss) -> None:
    """Running statistics that are the plain mean over all batches."""
    layers = [layer for layer in loss.model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        return
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    for images, _ in loss.batches:
        loss.model(images)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
        layer.eval()


def run(options: Options) -> Landscape:
    subject = options.load()
    found = landscape(subject.model, subject.loader, points=options.points, span=options.span, norm=options.norm, surface=options.surface, seed=options.seed)
    if options.other is not None and found.complete:
        other = options.load_model(len(subject.dataset.classes), options.other, options.other_checkpoint)
        line = interpolation(subject.model, other.to(subject.device), subject.loader, points=options.line_points, states=options.states)
        found.line_steps, found.line_losses, found.line_accuracies = line.line_steps, line.line_losses, line.line_accuracies
        found.complete = line.complete
    return found
