"""Curvature of the loss at a model's weights, and the loss around them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from vtkernels._core import plots
from vtkernels._core.check import fail
from vtkernels.analysis._loss import Criterion, Loss
from vtkernels.analysis._progress import progress
from vtkernels.analysis._result import Result
from vtkernels.analysis._spectrum import Lanczos, PowerIteration, Ritz, density, dot, norm
from vtkernels.analysis._subject import SubjectOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# where power iteration begins
STARTS = ("lanczos", "random")


@dataclass(frozen=True, kw_only=True)
class Options(SubjectOptions):
    """Options of `vtkernels analyze sharpness`.

    Attributes:
        split: of the data set; curvature is that of the training loss.
        samples: images that the loss is averaged over. The default is for a look in minutes on a CPU; numbers to be compared or published want
            1000 and more.
        only: patterns or beginnings of names of the parameters that are looked at; default all.
        blocks: patterns of groups of parameters, whose own largest eigenvalue is told.
        eigenvalues: so many of largest modulus are found by power iteration.
        power_start: lanczos, where power iteration goes on from what Lanczos found and soon stops; or random, which is a check of Lanczos that
            takes many more products.
        power_steps: most products for each of them.
        tolerance: relative change, or residual, at which power iteration stops.
        lanczos_steps: products of each Lanczos run.
        probes: Lanczos runs, from different random vectors; more smoothen the density.
        trace_samples: products that the trace is estimated from, beside the first one of each Lanczos run.
        rho: radius of the ball of sharpness-aware minimisation.
        draws: random steps of this length, in opposite pairs, that the average sharpness is taken over.
        graphs: GiB for what products with the Hessian have in common, a third of each; 0 computes it anew every time.
    """

    split: str = "train"
    samples: int | None = 64
    batch_size: int = 64
    only: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    eigenvalues: int = 1
    power_start: str = "lanczos"
    power_steps: int = 15
    tolerance: float = 1e-3
    lanczos_steps: int = 15
    probes: int = 1
    trace_samples: int = 2
    rho: float = 0.05
    draws: int = 4
    graphs: float = 4.0


@dataclass
class Sharpness(Result):
    """What `sharpness` found.

    Attributes:
        loss, gradient_norm: at the weights themselves.
        parameters, samples: numbers that were varied, and images.
        power: eigenvalues of largest modulus by power iteration; some eigenvalue is no further from each than its `power_error`, and `history` has
            the Rayleigh quotients on the way to it.
        largest, smallest: extreme eigenvalues by Lanczos; some eigenvalue is no further from `largest` than `largest_error`, and `extremes` has
            both, the smallest first, after each product.
        ritz: (values, weights) of each Lanczos run.
        trace, trace_error: Hutchinson's estimate, and its standard error.
        average, average_error: how much the loss rises on average for steps of length `rho` in random directions, and its standard error.
        maximum: how much it rises along the gradient; `per_batch` along each batch's own, as the optimizer sees it.
        blocks: largest eigenvalue of each group of parameters.
    """

    name: ClassVar[str] = "sharpness"
    parameters: int = 0
    samples: int = 0
    loss: float | None = None
    gradient_norm: float | None = None
    power: list[float] = field(default_factory=list)
    power_error: list[float] = field(default_factory=list)
    history: list[list[float]] = field(default_factory=list)
    largest: float | None = None
    largest_error: float | None = None
    extremes: list[tuple[float, float]] = field(default_factory=list)
    smallest: float | None = None
    ritz: list[dict[str, list[float]]] = field(default_factory=list)
    trace: float | None = None
    trace_error: float | None = None
    rho: float = 0.05
    average: float | None = None
    average_error: float | None = None
    maximum: float | None = None
    per_batch: float | None = None
    blocks: dict[str, float] = field(default_factory=dict)

    def summary(self) -> str:
        told = {
            "loss": self.loss,
            "largest eigenvalue (Lanczos)": self.largest,
            "largest in modulus (power iteration)": self.power[0] if self.power else None,
            "smallest eigenvalue": self.smallest,
            "trace": self.trace,
            f"average rise within {self.rho:g}": self.average,
            f"rise along the gradient by {self.rho:g}": self.maximum,
            **{f"largest eigenvalue of {name}": value for name, value in self.blocks.items()},
        }
        lines = [f"{name:40} {value:.6g}" for name, value in told.items() if value is not None]
        return "\n".join([super().summary(), f"{'parameters, images':40} {self.parameters}, {self.samples}", *lines])

    def draw(self) -> dict[str, "Figure"]:
        told = ((self._draw_density, self.ritz), (self._draw_convergence, self.extremes), (self._draw_blocks, self.blocks))
        panels = [panel for panel, there in told if there]
        if not panels:
            return {}
        figure, axes = plots.subplots(1, len(panels), squeeze=False)
        for panel, one in zip(panels, axes[0], strict=True):
            panel(one)
        return {self.name: figure}

    def _draw_density(self, axes: Any) -> None:
        runs = [Ritz(*(torch.tensor(run[key], dtype=torch.float64) for key in ("values", "weights")), torch.empty(0)) for run in self.ritz]
        points, values = density(runs)
        axes.semilogy(points, values.clamp(min=1e-12), color=plots.BLUE)
        axes.set_ylim(bottom=max(float(values.max()) * 1e-9, 1e-12))
        axes.axvline(self.largest, color=plots.VERMILION, linestyle="--", linewidth=1.2, label=f"largest: {self.largest:.4g}")
        axes.set(xlabel="eigenvalue of the Hessian", ylabel="density", title="Spectrum")
        axes.legend()

    def _draw_convergence(self, axes: Any) -> None:
        count = len(self.extremes)
        for values, line, label in zip(zip(*self.extremes, strict=True), ("--", "-"), ("smallest", "largest"), strict=True):
            axes.plot(range(1, count + 1), values, line, color=plots.BLUE, marker=plots.MARKERS[0], label=f"Lanczos: {label}")
        # each goes on where Lanczos ended
        for index, quotients in enumerate(self.history):
            color, marker = plots.SERIES[1:][index % (len(plots.SERIES) - 1)], plots.MARKERS[1:][index % (len(plots.MARKERS) - 1)]
            label = "power iteration" + (f": eigenvalue {index + 1}" if len(self.history) > 1 else "")
            axes.plot(range(count + 1, count + len(quotients) + 1), quotients, color=color, marker=marker, label=label)
        axes.set(xlabel="products with the Hessian", ylabel="eigenvalue", title="Convergence")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    def _draw_blocks(self, axes: Any) -> None:
        names = list(self.blocks)
        axes.barh(range(len(names)), [self.blocks[name] for name in names], color=plots.BLUE, height=0.66)
        axes.set_yticks(range(len(names)), names)
        axes.grid(False, axis="y")
        # from the top down, and no bars as fat as the panel where there are few
        axes.set_ylim(max(len(names), 6) - 0.5, -0.6)
        axes.set(xlabel="largest eigenvalue", title="Groups of parameters")


def sharpness(
    model: nn.Module,
    loader: Iterable[Any],
    criterion: Criterion = F.cross_entropy,
    *,
    only: Sequence[str] = (),
    blocks: Sequence[str] = (),
    eigenvalues: int = 1,
    power_start: str = "lanczos",
    power_steps: int = 100,
    tolerance: float = 1e-3,
    lanczos_steps: int = 100,
    probes: int = 1,
    trace_samples: int = 10,
    rho: float = 0.05,
    draws: int = 5,
    graphs: float = 4.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Sharpness:
    """Curvature of the mean loss over a loader, in eval mode; the arguments are those of `Options`. The model is left alone.

    Curvature in single precision wants a thousand samples, says experience; more precise is `dtype=torch.float64`. The average over the ball is
    always computed in it: a small step raises the loss by less than the rounding of single precision. So must `criterion` be able to.
    """
    for name, number in {"power_steps": power_steps, "lanczos_steps": lanczos_steps, "probes": probes}.items():
        if number < 1:
            fail("sharpness", name, "be at least 1", number)
    if power_start not in STARTS:
        fail("sharpness", "power_start", f"be one of {', '.join(STARTS)}", repr(power_start))
    if not rho > 0:
        fail("sharpness", "rho", "be positive", rho, "SAM's default is 0.05")
    room = int(graphs * 2**30)
    loss = Loss(model, loader, criterion, only=only, dtype=dtype, room=room)
    found = Sharpness(parameters=loss.size, samples=loss.count, rho=rho)
    starts: list[torch.Tensor] = []
    stages = (
        lambda: _extremes(found, loss, lanczos_steps, probes, eigenvalues if power_start == "lanczos" else 0, seed, starts),
        lambda: _power(found, loss, eigenvalues, power_steps, tolerance, seed, starts),
        lambda: _trace(found, loss, trace_samples, seed),
        lambda: _ball(found, loss, Loss(model, loss.batches, criterion, only=only, dtype=torch.float64), rho, draws, seed),
        *(lambda pattern=pattern: _block(found, Loss(model, loss.batches, criterion, only=[pattern], dtype=dtype, room=room), pattern, lanczos_steps, seed)
          for pattern in blocks),
    )  # fmt: skip
    # the caller's autocast would round the products of Lanczos' basis
    with torch.autocast(loss.device.type, enabled=False):
        # Ctrl-C ends the stage it happens in, or the time between two, and with it the rest
        try:
            found.complete = all(stage() for stage in stages)
        except KeyboardInterrupt:
            found.complete = False
    if found.loss is None:
        raise KeyboardInterrupt
    return found


def _extremes(found: Sharpness, loss: Loss, steps: int, probes: int, wanted: int, seed: int, vectors: list[torch.Tensor]) -> bool:
    """Extreme eigenvalues and the density; what `found` holds is right after each step. `vectors` gets estimates of the `wanted` first eigenvectors."""
    with progress("sharpness: Lanczos", steps * probes) as bar:
        found.loss = loss.value()
        found.gradient_norm = norm(loss.gradient())
        for probe in range(probes):
            # signs, so that the first product is one for the trace, too
            run = Lanczos(loss.product, loss.drawn(seed + probe, signs=True), steps)
            found.ritz.append({"values": [], "weights": []})
            more = True
            while more:
                more = run.step()
                ritz = run.ritz()
                found.ritz[-1] = {"values": ritz.values.tolist(), "weights": ritz.weights.tolist()}
                if probe == 0 or ritz.values[-1] >= found.largest:
                    found.largest, found.largest_error = float(ritz.values[-1]), float(ritz.bounds[-1])
                if probe == 0 or ritz.values[0] <= found.smallest:
                    found.smallest = float(ritz.values[0])
                found.extremes.append((found.smallest, found.largest))
                bar.advance(f"largest {found.largest:.4g}")
            if probe == 0:
                vectors += run.largest_vectors(wanted)
    found.ritz = [run for run in found.ritz if run["values"]]
    return not bar.interrupted


def _power(found: Sharpness, loss: Loss, eigenvalues: int, steps: int, tolerance: float, seed: int, starts: list[torch.Tensor]) -> bool:
    iteration = PowerIteration(loss.product, steps, tolerance)
    found.power, found.power_error, found.history = iteration.values, iteration.residuals, iteration.history
    with progress("sharpness: power iteration") as bar:
        for index in range(min(eigenvalues, loss.size)):
            iteration.begin(starts[index] if index < len(starts) else loss.drawn(seed + 1000 + index))
            while iteration.step():
                bar.advance(f"{found.history[-1][-1]:.4g}")
    found.history = [quotients for quotients in found.history if quotients]
    return not bar.interrupted


def _trace(found: Sharpness, loss: Loss, samples: int, seed: int) -> bool:
    """Hutchinson's estimate: the mean of v H v over vectors v of random signs, the first of each Lanczos run among them."""
    # a run's weights are of a start of length 1, and those of all signs are longer
    estimates = [loss.size * sum(value * weight for value, weight in zip(run["values"], run["weights"], strict=True)) for run in found.ritz]
    with progress("sharpness: trace", samples) as bar:
        for index in range(samples):
            vector = loss.drawn(seed + 2000 + index, signs=True)
            estimates.append(dot(loss.product(vector), vector))
            bar.advance()
    loss.forget()
    found.trace, found.trace_error = _mean_and_error(estimates)
    return not bar.interrupted


def _ball(found: Sharpness, loss: Loss, precise: Loss, rho: float, draws: int, seed: int) -> bool:
    """The loss on and in the ball of radius rho around the weights; `precise` is the loss in float64."""
    with progress("sharpness: ball", draws + 1) as bar:
        gradient = loss.gradient()
        before = precise.value()
        found.maximum = _loss_at(precise, gradient * (rho / max(norm(gradient), 1e-12))) - before
        found.per_batch = loss.along_own_gradient(rho)
        bar.advance()
        rises: list[float] = []
        for index in range(draws):
            direction = precise.drawn(seed + 3000 + index)
            step = direction * (rho / norm(direction))
            # opposite steps: the slope cancels, curvature remains
            rises.append(0.5 * (_loss_at(precise, step) + _loss_at(precise, -step)) - before)
            found.average, found.average_error = _mean_and_error(rises)
            bar.advance()
    return not bar.interrupted


def _mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean, and its standard error, which one value has none of."""
    numbers = torch.tensor(values, dtype=torch.float64)
    mean = float(numbers.mean()) if len(values) else None
    return mean, float(numbers.std() / len(numbers) ** 0.5) if len(values) > 1 else None


def _loss_at(loss: Loss, step: torch.Tensor) -> float:
    with loss.moved(step):
        return loss.value()


def _block(found: Sharpness, loss: Loss, pattern: str, steps: int, seed: int) -> bool:
    run = Lanczos(loss.product, loss.drawn(seed), steps)
    with progress(f"sharpness: {pattern}", steps) as bar:
        more = True
        while more:
            more = run.step()
            found.blocks[pattern] = float(run.ritz().values[-1])
            bar.advance(f"{found.blocks[pattern]:.4g}")
    return not bar.interrupted


def noisy_loss(loss: Loss, sigma: float, draws: int = 100, seed: int = 0) -> float:
    """Expected flatness: the mean loss under normal noise of deviation `sigma` on every weight, from opposite pairs of draws."""
    total = 0.0
    for index in range(draws):
        step = sigma * loss.drawn(seed + index)
        for one in (step, -step):
            with loss.moved(one):
                total += loss.value()
    return total / (2 * draws)


def run(options: Options) -> Sharpness:
    subject = options.load()
    names = ("only", "blocks", "eigenvalues", "power_start", "power_steps", "tolerance", "lanczos_steps", "probes", "trace_samples", "rho", "draws")
    return sharpness(subject.model, subject.loader, graphs=options.graphs, seed=options.seed, **{name: getattr(options, name) for name in names})
