"""The neural tangent kernel: products of the logits' gradients, whose condition number says how evenly gradient descent learns."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vtkernels._core import plots
from vtkernels._core.check import fail
from vtkernels.analysis._loss import chosen, plain_attention, unwrapped, working_copy
from vtkernels.analysis._progress import Progress, progress
from vtkernels.analysis._result import Result
from vtkernels.analysis._subject import SubjectOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Options(SubjectOptions):
    """Options of `vtkernels analyze ntk`.

    Attributes:
        split: of the data set.
        samples: images N; the kernel has N rows, the full one N times as many as there are classes.
        only: patterns or beginnings of names of the parameters that are looked at; default all.
        full: whether to compute the full kernel, too: much more work than the mean over classes.
        chunk: gradients held in memory at once; fewer are computed again more often.
    """

    split: str = "train"
    samples: int | None = 32
    only: tuple[str, ...] = ()
    full: bool = False
    chunk: int = 64


@dataclass
class NTK(Result):
    """Spectrum and condition number of the kernel of one set of images.

    Attributes:
        condition: largest by smallest eigenvalue of the kernel averaged over classes [N, N]; infinite if the smallest is 0 within rounding.
        averaged: how many classes the average is over: fewer than all if it was interrupted.
        eigenvalues: of that kernel, ascending.
        full_condition, full_eigenvalues: of the kernel of all logits [N * K, N * K], where it was computed.
        rank: eigenvalues above the rounding; `floor` is the rounding: n * eps * the largest.
        duplicates: pairs of equal images, which make the kernel singular.
    """

    name: ClassVar[str] = "ntk"
    parameters: int = 0
    samples: int = 0
    classes: int = 0
    averaged: int = 0
    condition: float | None = None
    rank: int | None = None
    floor: float | None = None
    eigenvalues: list[float] = field(default_factory=list)
    full_condition: float | None = None
    full_rank: int | None = None
    full_eigenvalues: list[float] = field(default_factory=list)
    duplicates: list[tuple[int, int]] = field(default_factory=list)

    def summary(self) -> str:
        lines = [super().summary(), f"{'parameters, images, classes':40} {self.parameters}, {self.samples}, {self.classes}"]
        if self.condition is not None:
            over = "classes" if self.averaged == self.classes else f"{self.averaged} of the classes"
            lines.append(f"{f'condition number, mean over {over}':40} {self.condition:.6g} (rank {self.rank} of {self.samples})")
        if self.full_condition is not None:
            lines.append(f"{'condition number, full':40} {self.full_condition:.6g} (rank {self.full_rank} of {self.samples * self.classes})")
        if self.duplicates:
            pairs = ", ".join(f"{first} and {second}" for first, second in self.duplicates[:4])
            lines.append(f"equal images make the kernel singular: {pairs}")
        return "\n".join(lines)

    def draw(self) -> dict[str, "Figure"]:
        kernels = [("mean over classes", self.eigenvalues, self.condition), ("full", self.full_eigenvalues, self.full_condition)]
        kernels = [kernel for kernel in kernels if kernel[1]]
        if not kernels:
            return {}
        figure, axes = plots.subplots()
        for index, (label, eigenvalues, condition) in enumerate(kernels):
            values = torch.tensor(eigenvalues, dtype=torch.float64).flip(0)
            place = torch.arange(1, len(values) + 1) / len(values)
            color = (plots.BLUE, plots.VERMILION)[index]
            told = f"{condition:.4g}" if condition != float("inf") else "infinite"
            # a logarithm has no place for what rounding made negative
            axes.semilogy(place, values.clamp(min=values[0] * 1e-18), color=color, marker=plots.MARKERS[index], label=f"{label}: condition {told}")
        axes.axhline(self.floor, color=plots.BLACK, linestyle=":", linewidth=1.2, label="rounding")
        axes.set(xlabel="place among the eigenvalues, largest first", ylabel="eigenvalue", title="Neural tangent kernel")
        axes.legend(loc="center left", bbox_to_anchor=(0.0, 0.25))
        return {self.name: figure}


def ntk(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    samples: int | None = None,
    only: Sequence[str] = (),
    full: bool = False,
    chunk: int = 64,
) -> NTK:
    """Condition number of the kernel at the model's weights, in float64 and eval mode, of logits before any softmax.

    Args:
        loader: of images and targets, of which only the images count.
        samples: so many of the first images; default all.
        full: compute the kernel of all logits, too.
        chunk: gradients held at once, each as large as the parameters; twice as many are in memory.
    """
    if chunk < 1:
        fail("ntk", "chunk", "be at least 1", chunk)
    gradients = _Gradients(model, loader, samples, only)
    found = NTK(parameters=gradients.size, samples=len(gradients.images), classes=gradients.classes, duplicates=gradients.duplicates())
    count, classes = found.samples, found.classes
    total = torch.zeros(count, count, dtype=torch.float64)
    with progress("ntk: mean over classes", classes) as bar:
        for index in range(classes):
            total, found.averaged = total + _gram(gradients, [(sample, index) for sample in range(count)], chunk), index + 1
            bar.advance()
    if found.averaged:
        found.eigenvalues, found.condition, found.rank, found.floor = _spectrum(total / found.averaged, bool(found.duplicates))
    if full and not bar.interrupted:
        rows = [(sample, index) for sample in range(count) for index in range(classes)]
        with progress("ntk: full", -(-len(rows) // chunk)) as bar:
            found.full_eigenvalues, found.full_condition, found.full_rank, _ = _spectrum(_gram(gradients, rows, chunk, bar), bool(found.duplicates))
    found.complete = not bar.interrupted
    return found


class _Gradients:
    """Of single logits by all parameters, as rows of a matrix that is never held whole."""

    def __init__(self, model: nn.Module, loader: Iterable[Any], samples: int | None, only: Sequence[str]):
        trained = {name for name, value in unwrapped(model).named_parameters() if value.requires_grad}
        self.model = working_copy(model, torch.float64, "ntk")
        named = dict(self.model.named_parameters())
        for name, value in named.items():
            value.requires_grad_(name in trained and chosen(name, only))
        self.parameters = [value for value in named.values() if value.requires_grad]
        if not self.parameters:
            fail("ntk", "only", "name trained parameters of the model", list(only), f"those trained are {', '.join(sorted(trained)[:4]) or 'none'}")
        self.size = sum(value.numel() for value in self.parameters)
        self.images = _first(loader, samples).to(self.parameters[0].device, torch.float64)
        if not self.images.isfinite().all():
            fail("ntk", "images", "be finite", "NaN or infinity")
        with torch.no_grad():
            logits = self.model(self.images[:1])
        if logits.dim() != 2:
            fail("ntk", "model", "give logits [B, classes]", list(logits.shape))
        self.classes = logits.shape[1]

    def rows(self, wanted: Sequence[tuple[int, int]]) -> Tensor:
        """[rows, size] of (sample, class) pairs; those of one sample share its forward pass if they stand together."""
        found = self.images.new_empty(len(wanted), self.size)
        logits, current = None, None
        for row, (sample, index) in zip(found, wanted, strict=True):
            if sample != current:
                with torch.enable_grad(), torch.autocast(self.images.device.type, enabled=False), plain_attention():
                    logits, current = self.model(self.images[sample : sample + 1]), sample
            grads = torch.autograd.grad(logits[0, index], self.parameters, retain_graph=True, materialize_grads=True)
            torch.cat([grad.reshape(-1) for grad in grads], out=row)
        return found

    def duplicates(self) -> list[tuple[int, int]]:
        flat = self.images.flatten(1)
        return [(first, second) for first in range(len(flat)) for second in range(first + 1, len(flat)) if torch.equal(flat[first], flat[second])]


def _first(loader: Iterable[Any], samples: int | None) -> Tensor:
    found, count = [], 0
    for images, *_ in loader:
        found.append(images if samples is None else images[: samples - count])
        count += len(found[-1])
        if samples is not None and count >= samples:
            break
    if not count:
        fail("ntk", "loader", "give at least one image", "none", "is the split empty, or samples 0?")
    return torch.cat(found)


def _gram(gradients: _Gradients, wanted: Sequence[tuple[int, int]], chunk: int, bar: Progress | None = None) -> Tensor:
    """[rows, rows]: the products of all gradients, two chunks of them in memory."""
    found = torch.zeros(len(wanted), len(wanted), dtype=torch.float64)
    for start, rows in _chunks(wanted, chunk):
        left = gradients.rows(rows)
        end = start + len(rows)
        found[start:end, start:end] = (left @ left.T).cpu()
        for other, further in _chunks(wanted[end:], chunk):
            block = (left @ gradients.rows(further).T).cpu()
            place = slice(end + other, end + other + len(further))
            found[start:end, place], found[place, start:end] = block, block.T
        if bar is not None:
            bar.advance()
    return found


def _chunks(rows: Sequence[Any], size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    return ((start, rows[start : start + size]) for start in range(0, len(rows), size))


def _spectrum(kernel: Tensor, singular: bool) -> tuple[list[float], float, int, float]:
    """Eigenvalues, condition number, rank, and what rounding hides."""
    values = torch.linalg.eigvalsh(0.5 * (kernel + kernel.T))
    largest = float(values[-1])
    floor = len(values) * torch.finfo(torch.float64).eps * max(largest, 0.0)
    rank = int((values > floor).sum())
    condition = largest / float(values[0]) if rank == len(values) and not singular else float("inf")
    return values.tolist(), condition, rank, floor


def run(options: Options) -> NTK:
    subject = options.load()
    return ntk(subject.model, subject.loader, only=options.only, full=options.full, chunk=options.chunk)
