"""The ops for an optimizer's own lists, which it has just put together: nothing is looked at twice.

To look at every tensor of a ViT again takes a quarter of a millisecond an op. What an optimizer cannot answer for are the
gradients: torch holds them to their parameter's shape and device, not to its layout and dtype. Where one differs, the
public function takes the call, and says what is wrong; numbers come from groups that anybody may change, and are looked at.
"""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.ops.sam import op, steps


def sam_perturb_(params: list[Tensor], grads: list[Tensor], backups: list[Tensor], *, rho: list[float], adaptive: list[bool], **rest: Any) -> Tensor:
    if not _as_expected(params, grads, rho):
        return op.sam_perturb_(params, grads, backups, rho=rho, adaptive=adaptive, **rest)
    rest = {"square_sum": None, "grad_scale": None} | rest
    last = (rest["eta"], rest["eps"], rest["grad_scale"], rest["found_inf"], rest["backend"])
    return torch.ops.vtkernels.sam_perturb_.default(params, grads, backups, rest["square_sum"], rho, adaptive, *last)


def sgd_step_(params: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor], **options: Any) -> None:
    if not _as_expected(params, grads, options["lr"], options["weight_decay"]):
        return steps.sgd_step_(params, grads, momentum_buffers, **options)
    options = {"decoupled": False} | options
    names = ("backups", "lr", "weight_decay", "momentum", "nesterov", "decoupled", "maximize", "grad_scale", "found_inf", "backend")
    torch.ops.vtkernels.sgd_step_.default(params, grads, momentum_buffers, *(options[name] for name in names))


def adamw_step_(params: list[Tensor], grads: list[Tensor], *state: list[Tensor], betas: tuple[float, float], **options: Any) -> None:
    if not _as_expected(params, grads, options["lr"], options["weight_decay"]):
        return steps.adamw_step_(params, grads, *state, betas=betas, **options)
    lists = ("backups", "lr", "weight_decay")
    scalars = ("eps", "decoupled", "maximize", "grad_scale", "found_inf", "backend")
    arguments = (*(options[name] for name in lists), *betas, *(options[name] for name in scalars))
    torch.ops.vtkernels.adamw_step_.default(params, grads, *state, *arguments)


def _as_expected(params: list[Tensor], grads: list[Tensor], *numbers: list[float]) -> bool:
    if not all(0.0 <= number < float("inf") for values in numbers for number in set(values)):
        return False
    return all(
        grad.layout == torch.strided and grad.dtype == param.dtype and param.dtype in check.COMPUTED_DTYPES for param, grad in zip(params, grads, strict=True)
    )
