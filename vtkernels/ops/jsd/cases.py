"""What the two ops are tested with (`cases`) and timed with (`bench_cases`); each row says why it exists."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vtkernels._core.testing import BenchCase, Case, Inputs

Draw = Callable[..., Tensor]


def cases(op: str) -> list[Case]:
    return [*_shared(op), *_OWN[op]()]


def _shared(op: str) -> Iterable[Case]:
    """What holds for both ops."""
    # sizes
    yield _case(op, "cifar", "three views, ten classes: samples side by side in a vector", (3, 19, 10), representative=True)
    yield _case(op, "imagenet", "a class count no vector divides", (3, 3, 1000), representative=True)
    yield _case(op, "two_views", "no third view", (2, 5, 100))
    yield _case(op, "five_views", "more views than the kernels are made for by name", (5, 4, 37))
    yield _case(op, "nine_views", "more views than registers can hold", (9, 2, 130))
    yield _case(op, "imagenet_21k", "rows beyond the first-level cache, and beyond a tile", (2, 1, 21841))
    yield _case(op, "one_class", "nothing to decide: every loss and gradient is 0", (3, 5, 1))
    yield _case(op, "two_classes", "the smallest decision", (2, 33, 2))
    yield _case(op, "one_sample", "a batch of one", (3, 1, 10))
    for classes in (7, 15, 16, 17, 31, 33, 63, 64, 65):
        yield _case(op, f"classes_{classes}", "around the vectors, and around where the layout changes", (3, 17, classes))
    yield _case(op, "many_samples", "enough to be shared between threads, and not in equal parts", (3, 261, 100))
    yield _case(op, "empty_batch", "no sample at all: a loss of 0, not 0 / 0", (3, 0, 10), representative=True)
    # values
    yield _case(op, "sharp", "most probabilities below the floor of the mixture, where the derivative changes", (3, 6, 100), gain=8.0, representative=True)
    yield _case(op, "sharp_few_classes", "the same with samples side by side", (3, 18, 10), gain=15.0)
    for classes in (10, 200):
        yield _case(op, f"underflow_{classes}", "logits of +-200: probabilities that are exactly 0", (3, 5, classes), make_logits=_far_apart)
        yield _case(op, f"large_offset_{classes}", "logits around 1000: nothing but differences counts", (3, 5, classes), offset=1000.0)
        yield _case(op, f"equal_logits_{classes}", "uniform predictions", (3, 5, classes), gain=0.0)
    yield _case(op, "floored_everywhere", "uniform over so many classes that no mixture is above 1e-5, and some are below the floor", (2, 1, 3000), gain=6.0)
    # memory
    yield _case(op, "row_slice", "logits are a slice of wider rows, at an odd offset", (3, 7, 33), layout=_slice_of_rows)
    yield _case(op, "row_slice_few_classes", "the same with samples side by side", (3, 19, 10), layout=_slice_of_rows)
    yield _case(op, "transposed", "logits whose last dimension is not dense", (3, 6, 20), layout=_transposed)
    yield _case(op, "every_other_row", "logits are every other row", (2, 6, 40), layout=_every_other_row)


def _consistency() -> Iterable[Case]:
    op = "jsd_consistency"
    yield _case(op, "weighted", "views of different weights", (3, 9, 50), weights=(0.5, 0.2, 0.3), representative=True)
    yield _case(op, "weighted_few_classes", "the same with samples side by side", (3, 21, 10), weights=(0.1, 0.7, 0.2))
    yield _case(op, "a_view_without_weight", "a view that only is compared, and gets no gradient", (3, 4, 20), weights=(0.5, 0.5, 0.0))
    yield _case(op, "sum", "not divided by the batch", (3, 9, 50), reduction="sum")
    yield _case(op, "none", "a loss, and an upstream gradient, of each sample", (3, 9, 50), reduction="none", representative=True)
    yield _case(op, "none_few_classes", "the same with samples side by side", (3, 21, 10), reduction="none")
    yield _case(op, "empty_none", "no loss at all", (3, 0, 10), reduction="none")


def _augmix() -> Iterable[Case]:
    op = "augmix_loss"
    for classes in (10, 300):
        yield _case(op, f"smoothed_{classes}", "label smoothing", (3, 18, classes), label_smoothing=0.1, representative=classes == 10)
        yield _case(op, f"soft_{classes}", "soft targets, which get a gradient", (3, 18, classes), target="soft", representative=classes == 10)
        yield _case(op, f"soft_smoothed_{classes}", "soft targets, smoothed", (3, 5, classes), target="soft", label_smoothing=0.2)
        yield _case(
            op, f"smoothed_offset_{classes}", "a mean of logits around 1000 must be one of differences", (3, 5, classes), label_smoothing=0.1, offset=1000.0
        )
    yield _case(op, "soft_not_normalised", "soft targets whose sum is not 1: nobody divides by it", (2, 5, 20), target="soft", target_gain=3.0)
    yield _case(op, "soft_in_half", "soft targets in the dtype of the logits, also where it is half", (3, 6, 20), target="soft", same_dtype=True)
    yield _case(op, "soft_transposed", "soft targets with strides of their own", (3, 6, 20), target="soft", layout=_transposed)
    yield _case(op, "no_consistency", "a weight of 0: the cross-entropy alone", (3, 8, 30), weight=0.0)
    yield _case(op, "all_smoothing", "every target uniform", (3, 8, 30), label_smoothing=1.0)
    yield _case(op, "last_class", "targets at both ends", (3, 4, 1000), target="ends")


_OWN = {"jsd_consistency": _consistency, "augmix_loss": _augmix}


def _case(
    op: str,
    name: str,
    why: str,
    size: tuple[int, int, int],
    *,
    gain: float = 1.5,
    offset: float = 0.0,
    make_logits: Callable[[Draw, int, int, int], Tensor] | None = None,
    layout: Callable[[Draw, int, int], Tensor] | None = None,
    target: str = "hard",
    target_gain: float = 1.0,
    same_dtype: bool = False,
    representative: bool = False,
    **options: Any,
) -> Case:
    """`size`: views, samples, classes; `gain`: standard deviation of the logits; `options` go to the op as they are."""
    views, batch, classes = size

    def make(dtype: torch.dtype, device: torch.device | str, generator: torch.Generator) -> Inputs:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def placed(values: Draw, rows: int) -> Tensor:
            return layout(values, rows, classes) if layout else values(rows, classes)

        if make_logits:
            logits = make_logits(draw, views, batch, classes).to(device, dtype)
        else:
            logits = placed(lambda *shape: (gain * draw(*shape) + offset).to(device, dtype), views * batch)
        inputs: Inputs = {"logits": logits, "num_views": views, **options}
        if op != "augmix_loss":
            return inputs
        if target == "soft":
            # float32 beside half precision, as mixup makes them under autocast
            target_dtype = dtype if same_dtype else torch.promote_types(dtype, torch.float32)
            inputs["target"] = placed(lambda *shape: (target_gain * draw(*shape).softmax(-1)).to(device, target_dtype), batch)
        elif target == "ends":
            inputs["target"] = (torch.arange(batch) % 2 * (classes - 1)).to(device)
        else:
            inputs["target"] = torch.randint(classes, (batch,), generator=generator).to(device)
        return inputs

    return Case(name, why, make, representative)


def _far_apart(draw: Draw, views: int, batch: int, classes: int) -> Tensor:
    # of every view the same class is likely: in a sum of gradients that all but cancel there would be nothing to judge
    sign = torch.where(draw(batch, classes) > 1.0, 200.0, -200.0)
    sign[:, 0] = 200.0
    return (sign + draw(views, batch, classes)).flatten(0, 1)


def _slice_of_rows(draw: Draw, rows: int, classes: int) -> Tensor:
    return draw(rows, classes + 5)[:, 3:-2]


def _transposed(draw: Draw, rows: int, classes: int) -> Tensor:
    return draw(classes, rows).T


def _every_other_row(draw: Draw, rows: int, classes: int) -> Tensor:
    return draw(2 * rows, classes)[::2]


CLASSES = (10, 100, 1000, 21841)
BATCHES = (128, 256, 512, 1024)


def bench_cases(classes: Iterable[int] = CLASSES, batches: Iterable[int] = BATCHES, views: int = 3) -> list[BenchCase]:
    """AugMix's loss of each class count and batch."""
    return [_bench_case(views, batch, count) for count in classes for batch in batches]


def gpu_cases(op: str, batch: int = 4096) -> list[BenchCase]:
    """ImageNet's classes at the batch the goal names and at an ordinary one, then few classes and many."""
    small = max(1, batch // 16)
    return [_bench_case(3, *shape, op) for shape in ((batch, 1000), (small, 1000), (batch, 10), (small, 21841))]


def _bench_case(views: int, batch: int, classes: int, op: str = "augmix_loss") -> BenchCase:
    case = _case(op, f"k{classes}/b{batch}", "", (views, batch, classes))
    elements = views * batch * classes
    return BenchCase(
        case.name,
        f"{views} views of {batch} samples, {classes} classes",
        case.make,
        # forward: read the logits; backward: write their gradient, which the forward may have done, from logits still at hand
        elements={"forward": elements, "backward": elements},
        # multiplications and additions beside an exponential a view and class, and a logarithm a class
        flops={"forward": 7 * elements, "backward": 3 * elements},
    )
