"""Searching architectures at toy scale: evolution in NASNet's space of cells, and EfficientNet's compound scaling under a budget."""

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from vtkernels._core import plots
from vtkernels._core.check import fail
from vtkernels.analysis._result import Result
from vtkernels.analysis._toy import accuracy, fit, images_of, stratified
from vtkernels.analysis.search.cells import Cells, CellSpace, build, describe, plan
from vtkernels.analysis.search.evolution import History, evolve
from vtkernels.analysis.search.scaling import Coefficients, Grid, candidates, scaling_grid
from vtkernels.analysis.throughput import count_macs
from vtkernels.models import create_model, model_config

PARTS = ("cells", "scaling")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `search`.

    Attributes:
        parts: "cells", evolution in NASNet's space, and "scaling", the grid of compound coefficients.
        evaluations, population, sample: of the evolution: networks that are trained, how many live, and how many compete for a child.
        blocks, filters: of a cell.
        base: the EfficientNet that is scaled.
        base_size, base_width: edge of its images, and factor on its channels, before scaling. Channels come in eights, so few of them
            could not grow by a tenth.
        budget, tolerance, step: by how much its multiplications may grow, how exactly, and how fine the grid is. The formula must be that
            close to the budget; the count, of which rounding makes something else, must not be more than that above it.
        limit: at most so many coefficients, spread over the grid.
        epochs: of each training.
        train, valid: images that a network is trained on, and those that score it, both from the training split.
        data, root: the set, and the folder of its files.
        size: edge of the images that cells are trained on.
        seed: of everything drawn.
        device: where to compute; default a GPU if there is one.
        out: folder for the results.
    """

    parts: tuple[str, ...] = PARTS
    evaluations: int = 24
    population: int = 8
    sample: int = 3
    blocks: int = 3
    filters: int = 8
    base: str = "efficientnet_nano"
    base_size: int = 16
    base_width: float = 2.0
    budget: float = 2.0
    tolerance: float = 0.1
    step: float = 0.1
    limit: int | None = 8
    epochs: int = 4
    train: int = 300
    valid: int = 400
    data: str = "digits"
    root: str | None = None
    size: int = 8
    seed: int = 0
    device: str | None = None
    out: str = "analysis"


@dataclass
class SearchResult(Result):
    """
    Attributes:
        cells, scores: candidates of the evolution in order, as text, and their accuracies.
        coefficients: (alpha, beta, gamma) of the grid in order; scaled_scores their accuracies.
        costs, macs: by how much each multiplies the cost in theory, and the multiply-accumulates of the network that came of it.
        best_cells, best_coefficients: those of the highest accuracy.
        base_macs: multiply-accumulates of the network that was scaled.
    """

    name: ClassVar[str] = "search"
    cells: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best_cells: str = ""
    coefficients: list[Coefficients] = field(default_factory=list)
    scaled_scores: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)
    base_macs: int = 0
    budget: float = 2.0
    best_coefficients: Coefficients | None = None
    population: int = 0

    def summary(self) -> str:
        lines = []
        if self.scores:
            lines += [f"best of {len(self.scores)} pairs of cells: accuracy {max(self.scores):.1%}", self.best_cells]
        if self.best_coefficients is not None:
            alpha, beta, gamma = self.best_coefficients
            cost = self.best_coefficients.cost
            lines.append(f"best of {len(self.scaled_scores)} scalings: depth {alpha:g}, width {beta:g}, resolution {gamma:g}, which cost {cost:.2f}")
        return "\n".join(lines)

    def draw(self) -> dict[str, Any]:
        figures = {}
        if self.scores:
            figures["search_cells"] = self._draw_cells()
        if self.scaled_scores:
            figures["search_scaling"] = self._draw_scaling()
        return figures

    def _draw_cells(self) -> Any:
        figure, axis = plots.subplots(width=8.0, height=5.0)
        scores = 100 * np.array(self.scores)
        number = np.arange(1, len(scores) + 1)
        drawn = number <= self.population
        axis.plot(number[drawn], scores[drawn], "o", color=plots.SKY, label="drawn at random")
        axis.plot(number[~drawn], scores[~drawn], "^", color=plots.ORANGE, label="child of a good one")
        axis.step(number, np.maximum.accumulate(scores), where="post", color=plots.BLUE, label="best so far")
        axis.set(xlabel="networks evaluated", ylabel="validation accuracy (%)", title="Regularised evolution in the space of NASNet's cells")
        axis.legend(loc="lower right")
        axis.xaxis.get_major_locator().set_params(integer=True)
        caption = "best: " + self.best_cells.replace("\n", "\n        ")
        figure.supxlabel(caption, fontsize=8, family="monospace", x=0.02, ha="left")
        return figure

    def _draw_scaling(self) -> Any:
        figure, (left, right) = plots.subplots(1, 2, width=11.5, height=4.4, width_ratios=(1.2, 1))
        alpha, beta, gamma = np.array(self.coefficients).T
        scores = 100 * np.array(self.scaled_scores)
        points = left.scatter(alpha, beta, c=scores, s=40 + 260 * (gamma - 1), cmap=plots.SEQUENTIAL, edgecolor="#444444", linewidth=0.5, clip_on=False)
        best = self.best_coefficients
        left.scatter(best.alpha, best.beta, s=520, facecolor="none", edgecolor=plots.VERMILION, linewidth=2, clip_on=False)
        left.set(xlabel="depth factor (alpha)", ylabel="width factor (beta)", title="Larger points: larger images (gamma); the ring is the best")
        figure.colorbar(points, ax=left, label="validation accuracy (%)")
        growth = np.array(self.macs) / self.base_macs
        right.scatter(self.costs, growth, color=plots.BLUE)
        low, high = min(self.costs), max(self.costs)
        right.plot([low, high], [low, high], color=plots.ORANGE, label="counted = formula")
        right.axhline(self.budget, color=plots.BLACK, linewidth=1, linestyle="--", label="budget")
        right.set(xlabel="cost by the formula", ylabel="multiplications counted, over the base's", title="What whole layers and channels in eights do")
        right.legend(loc="lower right")
        return figure


def run(options: Options) -> SearchResult:
    unknown = set(options.parts) - set(PARTS)
    if unknown or not options.parts:
        fail("search", "parts", f"be among {', '.join(PARTS)}", ", ".join(sorted(unknown)) or "none")
    for name in ("epochs", "train", "valid", "filters"):
        if getattr(options, name) < 1:
            fail("search", name, "be at least 1", getattr(options, name))
    result = SearchResult(complete=False, budget=options.budget, population=options.population)
    complete = True
    if "cells" in options.parts:
        history = search_cells(options)
        result.cells, result.scores = [describe(one) for one in history.candidates], history.scores
        result.best_cells = describe(history.best[0]) if history.scores else ""
        complete = history.complete
    # whoever interrupts the first part wants to see what it found, not the second
    if "scaling" in options.parts and complete:
        grid, result.macs, result.base_macs = search_scaling(options)
        result.coefficients, result.scaled_scores = grid.coefficients, grid.scores
        result.costs = [one.cost for one in grid.coefficients]
        result.best_coefficients = grid.best[0] if grid.scores else None
        complete = grid.complete
    result.complete = complete
    return result


def search_cells(options: Options) -> History[Cells]:
    """Evolution with accuracy after a short training as the score."""
    score = _scorer(options, options.size)

    def evaluate(cells: Cells) -> float:
        return score(lambda classes: build(cells, num_classes=classes, size=options.size, filters=options.filters))

    space = CellSpace(options.blocks)
    shape = {"evaluations": options.evaluations, "population": options.population, "sample": options.sample}
    return evolve(space.draw, space.mutate, evaluate, seed=options.seed, **shape)


def search_scaling(options: Options) -> tuple[Grid, list[int], int]:
    """The grid with accuracy after a short training as the score; and the multiply-accumulates of each network and of the base."""
    config = model_config(options.base)
    for name in ("width", "depth"):
        if not hasattr(config, name):
            fail("search", "base", "have factors of width and depth", options.base, "take an efficientnet")

    def network(one: Coefficients, size: int, classes: int) -> torch.nn.Module:
        factors = {"depth": config.depth * one.alpha, "width": config.width * options.base_width * one.beta}
        return create_model(options.base, num_classes=classes, img_size=size, **factors)

    # the images of a size are read once
    scorer = functools.cache(lambda edge: _scorer(options, edge))

    def size(one: Coefficients) -> int:
        return round(options.base_size * one.gamma)

    def macs(one: Coefficients) -> int:
        with torch.device("meta"):
            return count_macs(network(one, size(one), 10), torch.empty(1, config.in_channels, size(one), size(one)))

    def evaluate(one: Coefficients) -> float:
        return scorer(size(one))(lambda classes: network(one, size(one), classes))

    base = macs(Coefficients(1.0, 1.0, 1.0))
    counts = {one: macs(one) for one in candidates(options.budget, options.tolerance, options.step)}
    # whole layers and channels in eights can cost far more than the formula says
    among = [one for one, count in counts.items() if count <= options.budget * (1 + options.tolerance) * base]
    if not among:
        fail("search", "base", "have a network within the budget by count", f"none of {len(counts)}", "take a larger base, or a smaller step")
    grid = scaling_grid(evaluate, among, budget=options.budget, tolerance=options.tolerance, limit=options.limit)
    return grid, [counts[one] for one in grid.coefficients], base


def _scorer(options: Options, size: int) -> Any:
    """A function of a network's maker that trains it and gives its accuracy on images it has not seen."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    images, labels = images_of(options.data, "train", size, options.root)
    classes = int(labels.max()) + 1
    if len(labels.unique()) < 2:
        fail("search", "data", "hold images of two classes or more", "one class")
    if options.train + options.valid > len(labels):
        fail("search", "train and valid", f"be at most the {len(labels)} images together", options.train + options.valid)
    order = stratified(labels, options.train + options.valid, options.seed)
    train, valid = order[: options.train], order[options.train :]

    def score(make: Any) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            net = fit(make(classes).to(device), images[train], labels[train], updates=options.epochs * -(-len(train) // 50), batch=50, lr=4e-3)
        return accuracy(net, images[valid], labels[valid])

    return score


__all__ = [
    "CellSpace",
    "Cells",
    "Coefficients",
    "Grid",
    "History",
    "Options",
    "SearchResult",
    "build",
    "candidates",
    "describe",
    "evolve",
    "plan",
    "run",
    "scaling_grid",
    "search_cells",
    "search_scaling",
]
