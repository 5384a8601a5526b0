"""What losses are given: logits in the precision they are computed in, classes that exist, probabilities of the right shape."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels._core.op import watched

REDUCTIONS = ("mean", "sum", "none")


def computed(x: Tensor) -> Tensor:
    """In float32 at least: half precision and autocast must not reach into a loss."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def class_logits(op: str, logits: Any, name: str = "logits") -> Tensor:
    """Checked logits [B, K], ready to compute with."""
    check.check_tensor(op, name, logits, 2, "[batch, classes]")
    check.check_floating(op, name, logits)
    if logits.shape[1] < 1:
        check.fail(op, name, "have at least one class", list(logits.shape), "only the batch may be empty")
    return computed(logits)


def one_of(op: str, name: str, value: Any, allowed: tuple[str, ...] | dict[str, Any], hint: str = "") -> None:
    if not isinstance(value, str) or value not in allowed:
        check.fail(op, name, f"be one of {', '.join(allowed)}", repr(value), hint)


def number(op: str, name: str, value: Any, low: float = 0.0, high: float = math.inf, hint: str = "", *, low_counts: bool = True) -> None:
    """A finite number in [low, high], or above `low` where that does not count."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= value <= high or (value == low and not low_counts):
        left = f"of at least {low:g}" if low_counts else f"above {low:g}"
        check.fail(op, name, f"be a number {left}" + (f" and at most {high:g}" if high < math.inf else ""), repr(value), hint)


def is_soft(target: Tensor) -> bool:
    return target.is_floating_point()


def may_look(*tensors: Tensor) -> bool:
    """Whether values can be read without waiting for a device or breaking a trace."""
    return all(tensor.device.type == "cpu" for tensor in tensors) and not watched(*tensors)


def check_probabilities(op: str, name: str, value: Tensor, of: str, main: Tensor) -> None:
    """Probabilities, or other numbers of that kind, beside logits of the same shape."""
    check.check_shape(op, name, value, tuple(main.shape), f"one number for each of {of}; classes must be int64")
    check.check_companion(op, name, value, of, main)


def check_classes(op: str, target: Any, rows: Tensor, name: str = "target", of: str = "logits") -> None:
    check.check_tensor(op, name, target)
    if target.dtype != torch.int64:
        check.fail(op, name, "have dtype int64 (classes)", target.dtype, f"try {name}.long()", TypeError)
    check.check_shape(op, name, target, (rows.shape[0],), "one class for each sample")
    if target.device != rows.device:
        check.fail(op, name, f"be on the device of {of} ({rows.device})", target.device, f"try {name}.to({of}.device)")


def check_target(op: str, target: Any, logits: Tensor) -> None:
    """Classes [B], or numbers [B, K]."""
    check.check_tensor(op, "target", target)
    if is_soft(target):
        return check_probabilities(op, "target", target, "logits", logits)
    check_classes(op, target, logits)


def existing(op: str, target: Tensor, classes: int, ignore_index: int | None = None, name: str = "target") -> tuple[Tensor, Tensor, Tensor]:
    """Indices that are safe to gather with, which of them count, and which name no class: on a CPU the latter raise."""
    index = target.clamp(0, classes - 1)
    counts = index == target
    ignored = torch.zeros_like(counts) if ignore_index is None else target == ignore_index
    wrong = ~(counts | ignored)
    if may_look(target) and wrong.any():
        first = wrong.nonzero()[0, 0].item()
        hint = "ignore_index names the one class to leave out" if ignore_index is not None else "classes are counted from 0"
        check.fail(op, f"{name}[{first}]", f"lie between 0 and {classes - 1}", target[first].item(), hint)
    return index, counts & ~ignored, wrong


def expected(
    op: str, log_p: Tensor, target: Tensor, term: Callable[[Tensor], Tensor], ignore_index: int, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sum over classes of target times weight times term(log_p), for each sample, and how much each sample counts in a mean.

    A sample counts 1, an ignored one 0, or with `weight` what the weights of its classes amount to. A class that does not exist
    makes the sum NaN where looking would mean waiting for the device.
    """
    if is_soft(target):
        target = target.to(log_p.dtype)
        share = target if weight is None else target * weight
        # a class that is ruled out on both sides costs nothing
        values = term(log_p.masked_fill((target == 0) & log_p.isneginf(), 0.0))
        total = (share * values).sum(1)
        return total, torch.ones_like(total) if weight is None else share.sum(1)
    index, counts, wrong = existing(op, target, log_p.shape[1], ignore_index)
    total = term(log_p.gather(1, index[:, None])[:, 0])
    count = counts.to(log_p.dtype)
    if weight is not None:
        count = count * weight[index]
        total = total * weight[index]
    return total.masked_fill(~counts, 0.0).masked_fill(wrong, math.nan), count


def class_weights(op: str, weight: Any, logits: Tensor, name: str = "weight") -> Tensor | None:
    """[K] factors of the classes in the precision of the loss."""
    if weight is None:
        return None
    check.check_tensor(op, name, weight)
    check.check_shape(op, name, weight, (logits.shape[1],), "one factor for each class")
    if weight.device != logits.device:
        check.fail(op, name, f"be on the device of logits ({logits.device})", weight.device, f"try {name}.to(logits.device)")
    return weight.to(logits.dtype)


def reduced(op: str, losses: Tensor, reduction: str, count: Tensor | float | None = None) -> Tensor:
    """The mean divides by `count`, of the losses if it is not given; over nothing it is 0."""
    one_of(op, "reduction", reduction, REDUCTIONS)
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    if not isinstance(count, Tensor):
        return total / max(losses.numel() if count is None else count, 1)
    count = count.sum()
    return total / torch.where(count == 0, torch.ones_like(count), count)
