"""Sharpness-aware minimisation's own ops: the norm of the gradients, the perturbation, and the way back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels._core.op import Op, define
from vtkernels.ops.sam.common import (
    Perturb,
    Restore,
    SquareSum,
    check_beside,
    check_flag,
    check_params,
    check_range,
    norm_dtype,
    per_tensor,
    refuse_shared,
    written,
)


def op_of(name: str, attribute: str, mutates: tuple[str, ...]) -> Op:
    """An op of this folder: each backend module holds several."""
    backends = {"triton": "triton", "cuda": "cuda", "cpu": "native", "reference": "reference"}
    modules = {backend: f"vtkernels.ops.sam.{module}:{attribute}" for backend, module in backends.items()}
    return Op(name, modules, differentiable=False, mutates=mutates)


SQUARE_SUM = op_of("sam_square_sum", "SQUARE_SUM", ())
PERTURB = op_of("sam_perturb_", "PERTURB", ("params", "backups", "found_inf"))
RESTORE = op_of("sam_restore_", "RESTORE", ("params",))


@torch.no_grad()
def sam_square_sum(
    params: Sequence[Tensor], grads: Sequence[Tensor], *, adaptive: bool | Sequence[bool] = False, eta: float = 0.0, backend: str = "auto"
) -> Tensor:
    """Sum of the squares of all gradients, in float64 and in a fixed order: what `sam_perturb_` takes the root of.

    Its own op for those who must add several of them first, over the shards of a parameter or over devices.

    Args:
        params: the parameters; only adaptive ones are read.
        grads: a gradient for each.
        adaptive: for all tensors or for each: sum ((|w| + eta) * g)^2 instead of g^2.
        eta: see `sam_perturb_`.
        backend: auto, triton, cuda, cpu or reference.

    Returns:
        A float64 tensor without dimensions, on the device of the parameters. Not finite if any gradient is not.
    """
    return torch.ops.vtkernels.sam_square_sum.default(*_prepare_square_sum(params, grads, adaptive, eta, backend))


@torch.no_grad()
def sam_perturb_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    backups: Sequence[Tensor],
    *,
    rho: float | Sequence[float],
    adaptive: bool | Sequence[bool] = False,
    eps: float = 1e-12,
    eta: float = 0.0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    square_sum: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Save all parameters and climb to the worst point nearby: w += rho * T^2 * g / (norm + eps), in place, with T = 1.

    The norm is that of all T * g together; it is computed on the device, in a fixed order, and nothing waits for it.
    If a gradient is inf or NaN, or the norm overflows, no parameter changes (the backups are written all the same).

    Args:
        params: the parameters, changed in place; dtypes may differ, all on one device.
        grads: a gradient for each, of its dtype; read only.
        backups: a tensor like each parameter, overwritten with the exact old values.
        rho: radius, for all tensors or for each.
        adaptive: for all tensors or for each: T = |w| + eta (ASAM; with eta = 0 that of davda54/sam).
        eps: added to the norm.
        eta: added to |w| where adaptive.
        grad_scale: what a GradScaler multiplied the loss with; the norm returned and eps are of the unscaled gradients.
        found_inf: float32, one element: not 0 means that nothing may change; set to 1 where a gradient is not finite.
        square_sum: what `sam_square_sum` returned, added up over all there is, in place of the norm over `grads`.
        backend: auto, triton, cuda, cpu or reference.

    Returns:
        The norm, a tensor without dimensions, in float32 (float64 if a parameter is).
    """
    return torch.ops.vtkernels.sam_perturb_.default(
        *_prepare_perturb(params, grads, backups, rho, adaptive, eps, eta, grad_scale, found_inf, square_sum, backend)
    )


@torch.no_grad()
def sam_restore_(params: Sequence[Tensor], backups: Sequence[Tensor], *, backend: str = "auto") -> None:
    """Put back what `sam_perturb_` saved, to the bit and in place.

    Args:
        params: the parameters, overwritten.
        backups: what each was.
        backend: auto, triton, cuda, cpu or reference.
    """
    torch.ops.vtkernels.sam_restore_.default(*_prepare_restore(params, backups, backend))


def _prepare_square_sum(params, grads, adaptive, eta, backend) -> tuple[Any, ...]:
    name = SQUARE_SUM.name
    params = check_params(name, params)
    grads = check_beside(name, "grads", grads, params)
    check_range(name, "eta", [eta], 0.0, float("inf"))
    SQUARE_SUM.check_name(backend)
    return params, grads, per_tensor(name, "adaptive", adaptive, params, bool), float(eta), backend


def _prepare_perturb(params, grads, backups, rho, adaptive, eps, eta, grad_scale, found_inf, square_sum, backend) -> tuple[Any, ...]:
    name = PERTURB.name
    params = check_params(name, params)
    grads, backups = check_beside(name, "grads", grads, params), check_beside(name, "backups", backups, params)
    rho = per_tensor(name, "rho", rho, params, float)
    check_range(name, "rho", rho, 0.0, float("inf"), "SAM's paper uses 0.05, ViTs are often trained with 0.1 to 0.6")
    check_range(name, "eps", [eps], 0.0, float("inf"), "it only keeps 0 / 0 out: the usual value is 1e-12")
    check_range(name, "eta", [eta], 0.0, float("inf"))
    check_flag(name, "grad_scale", grad_scale, params[0].device)
    check_flag(name, "found_inf", found_inf, params[0].device)
    if square_sum is not None:
        check.check_tensor(name, "square_sum", square_sum)
        if square_sum.numel() != 1 or square_sum.dtype != torch.float64 or square_sum.device != params[0].device:
            got = f"{square_sum.dtype} {list(square_sum.shape)} on {square_sum.device}"
            check.fail(name, "square_sum", f"be one float64 on {params[0].device}", got, "pass what sam_square_sum returned", TypeError)
    PERTURB.check_name(backend)
    return params, grads, backups, square_sum, rho, per_tensor(name, "adaptive", adaptive, params, bool), float(eta), float(eps), grad_scale, found_inf, backend


def _prepare_restore(params, backups, backend) -> tuple[Any, ...]:
    params = check_params(RESTORE.name, params)
    RESTORE.check_name(backend)
    return params, check_beside(RESTORE.name, "backups", backups, params), backend


def _square_sum(*args: Any) -> Tensor:
    call = SquareSum(*args[:-1])
    return SQUARE_SUM.select("forward", args[-1], call)(call)


def _square_sum_fake(*args: Any) -> Tensor:
    return args[0][0].new_empty((), dtype=torch.float64)


def _perturb(*args: Any) -> Tensor:
    call = Perturb(*args[:-1])
    refuse_shared(PERTURB.name, call)
    run = PERTURB.select("forward", args[-1], call)
    norm = run(call)
    written(call.params, call.backups, [] if call.found_inf is None else [call.found_inf])
    return norm


def _perturb_fake(*args: Any) -> Tensor:
    return args[0][0].new_empty((), dtype=norm_dtype(args[0]))


def _restore(*args: Any) -> None:
    call = Restore(*args[:-1])
    run = RESTORE.select("forward", args[-1], call)
    run(call)
    written(call.params)


def _restore_fake(*args: Any) -> None:
    return None


define("sam_square_sum(Tensor[] params, Tensor[] grads, bool[] adaptive, float eta, str backend) -> Tensor", _square_sum, _square_sum_fake)
define(
    "sam_perturb_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] backups, Tensor? square_sum, float[] rho, bool[] adaptive, float eta, float eps, "
    "Tensor? grad_scale, Tensor(c!)? found_inf, str backend) -> Tensor",
    _perturb,
    _perturb_fake,
)
define("sam_restore_(Tensor(a!)[] params, Tensor[] backups, str backend) -> ()", _restore, _restore_fake)


def _example_tensors(device: torch.device, *names: str) -> dict[str, list[Tensor]]:
    return {name: [torch.zeros(3, 5, device=device)] for name in names}


SQUARE_SUM.explains(
    sam_square_sum, lambda **arguments: SquareSum(*_prepare_square_sum(**arguments)[:-1]), lambda device: _example_tensors(device, "params", "grads")
)
PERTURB.explains(
    sam_perturb_,
    lambda **arguments: Perturb(*_prepare_perturb(**arguments)[:-1]),
    lambda device: _example_tensors(device, "params", "grads", "backups") | {"rho": 0.05},
)
RESTORE.explains(sam_restore_, lambda **arguments: Restore(*_prepare_restore(**arguments)[:-1]), lambda device: _example_tensors(device, "params", "backups"))
