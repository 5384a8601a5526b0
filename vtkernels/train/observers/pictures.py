"""Pictures of what a model confuses, gets most wrong, and looks at."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core.plots import BLUE, SEQUENTIAL, figure
from vtkernels.evaluation.plots import MOST_NAMES, confusion_plot
from vtkernels.train.observers.findings import Example


def draw_confusion(confusion: Tensor, classes: Sequence[str], path: Path) -> str:
    """A matrix, or of many classes, each of which would be too small, the worst confusions; what is to be seen, in words."""
    if len(classes) > MOST_NAMES:
        return _draw_confusions(confusion, classes, path)
    confusion_plot(confusion, classes, path)
    return "Rows are true classes, columns the model's answers."


def _draw_confusions(confusion: Tensor, classes: Sequence[str], path: Path, most: int = 20) -> str:
    wrong = confusion.clone().fill_diagonal_(0)
    counts, places = wrong.flatten().topk(min(most, wrong.numel()))
    found = [(count, *divmod(place, len(classes))) for count, place in zip(counts.tolist(), places.tolist(), strict=True) if count]
    if not found:
        return ""
    with figure(path, 8.0, 1.2 + 0.27 * len(found)) as drawn:
        axes = drawn.subplots()
        sizes = confusion.sum(1)
        bars = axes.barh(range(len(found)), [count for count, _, _ in found], color=BLUE)
        axes.bar_label(bars, [f"{100 * count / sizes[true].item():.0f} % of the class" for count, true, _ in found], padding=3, fontsize=8)
        axes.set_yticks(range(len(found)), [f"{_short(classes[true], 24)} → {_short(classes[taken], 24)}" for _, true, taken in found])
        axes.invert_yaxis()
        axes.set(xlabel="samples", xlim=(0, found[0][0] * 1.25))
        axes.grid(axis="y", visible=False)
    return f"Of {len(classes)} classes, the {len(found)} most frequent confusions, as true class → answer."


def draw_examples(examples: Sequence[Example], classes: Sequence[str], path: Path, columns: int = 5) -> None:
    """Images with what they are, what they were taken for, how sure the model was, and the loss."""
    rows = math.ceil(len(examples) / columns)
    height, width = examples[0].image.shape[-2:]
    tall = min(max(1.75 * height / width, 0.6), 4.0) + 0.75
    with figure(path, 1.9 * columns, tall * rows) as drawn:
        cells = drawn.subplots(rows, columns, squeeze=False).flatten()
        for cell in cells:
            cell.axis("off")
        for cell, example in zip(cells, examples, strict=False):
            _show(cell, example.image)
            answer = "right" if example.label == example.predicted else f"taken for {_short(classes[example.predicted], 15)}"
            lines = (_short(classes[example.label], 24), answer, f"{100 * example.confidence:.0f} %, loss {example.loss:.2f}")
            cell.set_title("\n".join(lines), fontsize=8, loc="left")


def draw_maps(images: Tensor, maps: dict[str, Tensor], path: Path, columns: int = 6) -> None:
    """Images [B, C, H, W] in 0..1, and beside each what [B, h, w] says of its places, each from its own least to its own most."""
    names = list(maps)
    if len(names) > columns - 1:
        # from the first to the last
        names = [names[round(i * (len(names) - 1) / (columns - 2))] for i in range(columns - 1)]
    height, width = images.shape[-2:]
    with figure(path, 1.8 * (1 + len(names)), (1.65 * height / width + 0.12) * len(images) + 0.4) as drawn:
        cells = drawn.subplots(len(images), 1 + len(names), squeeze=False)
        for row, image in zip(cells, images, strict=True):
            _show(row[0], image)
        for column, name in enumerate(names, 1):
            for row, values in zip(cells[:, column], maps[name].float().cpu(), strict=True):
                row.imshow(_enlarged(values, (height, width)).numpy(), cmap=SEQUENTIAL)
        for cell in cells.flat:
            cell.axis("off")
        for cell, title in zip(cells[0], ["image", *names], strict=True):
            cell.set_title(title, fontsize=8, loc="center")


def _show(cell: Any, image: Tensor) -> None:
    """Colours, or greys where there are not three channels."""
    pixels = image.permute(1, 2, 0).numpy() if image.shape[0] == 3 else image[:1].permute(1, 2, 0).expand(-1, -1, 3).numpy()
    cell.imshow(pixels, interpolation="nearest")


def _enlarged(values: Tensor, size: tuple[int, int]) -> Tensor:
    values = values.nan_to_num()
    values = (values - values.min()) / (values.max() - values.min()).clamp(min=torch.finfo(values.dtype).tiny)
    # smooth, but each cell stays where it is
    return F.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0] if min(values.shape) > 1 else values


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
