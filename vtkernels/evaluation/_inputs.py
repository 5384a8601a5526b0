"""What the metrics ask of their arguments, told before anything is computed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels._core.check import fail

# rows whose float64 copies exist at one time: ImageNet's logits would take 400 MB each
ROWS = 8192


def given_logits(what: str, logits: Any) -> Tensor:
    """[N, K] with at least one row and two classes, in the dtype it came in."""
    logits = logits if isinstance(logits, Tensor) else torch.as_tensor(np.asarray(logits))
    check.check_tensor(what, "logits", logits, 2, "[N, K]")
    check.check_floating(what, "logits", logits)
    if not len(logits):
        fail(what, "logits", "hold at least one sample", list(logits.shape), "is the data set empty?")
    if logits.shape[1] < 2:
        fail(what, "logits", "have at least two classes", list(logits.shape), "of one class every answer is right")
    return logits.detach()


def finite_logits(what: str, logits: Any) -> Tensor:
    logits = given_logits(what, logits)
    # -inf masks a class; what has no probability is NaN, +inf, or a row of nothing but -inf
    bad = torch.isnan(logits).any(dim=1) | ~torch.isfinite(logits.amax(dim=1))
    if bad.any():
        hint = "top-k accuracy counts such samples as wrong; try precision='float32', or look for what diverged"
        fail(what, "logits", "be numbers", f"NaN or infinite ones in {int(bad.sum())} of {len(bad)} samples", hint)
    return logits


def given_classes(what: str, name: str, values: Any, count: int | None, num_classes: int, none: bool = False) -> Tensor:
    """int64 [N] on the CPU in 0..K-1, and where `none` is set also -1, which stands for no class."""
    values = torch.as_tensor(values)
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
        fail(what, name, "be whole numbers", values.dtype, f"try {name}.long(), or argmax(1) of one-hot rows", TypeError)
    check.check_tensor(what, name, values, 1, "[N]")
    if count is not None and len(values) != count:
        fail(what, name, f"be as many as the samples ({count})", len(values))
    if not len(values):
        fail(what, name, "hold at least one sample", 0, "is the data set empty?")
    least = -1 if none else 0
    if values.min() < least or values.max() >= num_classes:
        hint = "does the model have as many classes as the data set?" if none else "-1, no class, is for thresholds and open-set measures"
        fail(what, name, f"lie in {least}..{num_classes - 1}", f"{int(values.min())}..{int(values.max())}", hint)
    return values.detach().cpu().long()


def given_scores(what: str, name: str, scores: Any, count: int | None = None) -> Tensor:
    """float64 [N] on the CPU without NaN."""
    # a list of Python's floats is not rounded to torch's default
    scores = scores if isinstance(scores, Tensor) else torch.as_tensor(np.asarray(scores))
    check.check_tensor(what, name, scores, 1, "[N]")
    if count is not None and len(scores) != count:
        fail(what, name, f"be as many as the samples ({count})", len(scores))
    if not len(scores):
        fail(what, name, "hold at least one sample", 0, "is the data set empty?")
    scores = scores.detach().cpu().double()
    if torch.isnan(scores).any():
        fail(what, name, "be numbers", f"{int(torch.isnan(scores).sum())} NaN of {len(scores)}", "leave samples out whose logits are NaN")
    return scores


def given_correct(what: str, correct: Any, count: int) -> Tensor:
    """bool [N] from bools or zeros and ones."""
    correct = torch.as_tensor(correct)
    if correct.shape != (count,):
        fail(what, "correct", f"have shape [{count}]", list(correct.shape))
    if correct.dtype != torch.bool and not ((correct == 0) | (correct == 1)).all():
        fail(what, "correct", "be true or false for each sample", "other numbers", "try predicted == targets")
    return correct.detach().cpu().bool()


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Iterator[tuple[slice, Tensor]]:
    """float64 log-softmax of `logits / temperature`, some rows at a time."""
    for start in range(0, len(logits), ROWS):
        rows = slice(start, min(start + ROWS, len(logits)))
        yield rows, torch.log_softmax(logits[rows].double() / temperature, dim=1)


def expected_prefix_sums(scores: Tensor, values: Tensor) -> Tensor:
    """Sums of the values of the 1, 2, ... highest scores; within equal scores, their mean over all orders.

    So the order in which the samples came has no say.
    """
    order = torch.argsort(scores, descending=True)
    _, lengths = torch.unique_consecutive(scores[order], return_counts=True)
    group = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    sums = torch.zeros(len(lengths), dtype=torch.float64).index_add_(0, group, values.double()[order])
    return torch.cumsum((sums / lengths)[group], dim=0)
