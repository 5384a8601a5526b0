"""Optimizer steps for lists of tensors, which can start from SAM's backups: one pass restores, updates and decays."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels._core.op import define
from vtkernels.ops.sam.common import AdamWStep, SgdStep, check_beside, check_flag, check_params, check_range, listed, per_tensor, written
from vtkernels.ops.sam.op import _example_tensors, op_of

SGD = op_of("sgd_step_", "SGD", ("params", "momentum_buffers"))
ADAMW = op_of("adamw_step_", "ADAMW", ("params", "exp_avgs", "exp_avg_sqs", "steps"))
_INFINITY = float("inf")


@torch.no_grad()
def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] = (),
    *,
    lr: float | Sequence[float],
    momentum: float = 0.0,
    weight_decay: float | Sequence[float] = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    maximize: bool = False,
    backups: Sequence[Tensor] = (),
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """One step of SGD, in place: torch.optim.SGD's, or with `decoupled` weight decay timm's SGDW.

    g += weight_decay * w (or w *= 1 - lr * weight_decay); buf = momentum * buf + g; w -= lr * (buf, or g + momentum * buf).

    Args:
        params: the parameters, overwritten.
        grads: a gradient for each, of its dtype; read only.
        momentum_buffers: like the parameters, updated; zeros at first. Empty without momentum.
        lr: learning rate, for all tensors or for each.
        momentum: 0 to below 1.
        weight_decay: for all tensors or for each.
        nesterov: Nesterov's momentum.
        decoupled: decay the weights themselves instead of adding to the gradient.
        maximize: follow the gradient instead of going against it.
        backups: what the parameters were before `sam_perturb_`: the step starts from these. Empty: from the parameters.
        grad_scale: the gradients are divided by it.
        found_inf: not 0: restore the backups, change nothing else.
        backend: auto, triton, cuda, cpu or reference.
    """
    arguments = _prepare_sgd(
        params, grads, momentum_buffers, lr, momentum, weight_decay, nesterov, decoupled, maximize, backups, grad_scale, found_inf, backend
    )
    torch.ops.vtkernels.sgd_step_.default(*arguments)


@torch.no_grad()
def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Sequence[float],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Sequence[float] = 0.01,
    decoupled: bool = True,
    maximize: bool = False,
    backups: Sequence[Tensor] = (),
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """One step of AdamW (of Adam without `decoupled`), in place, as torch.optim computes it.

    w *= 1 - lr * weight_decay; m += (1 - beta1)(g - m); v = beta2 * v + (1 - beta2) g^2;
    w -= lr * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps).

    Args:
        params: the parameters, overwritten.
        grads: a gradient for each, of its dtype; read only.
        exp_avgs: like the parameters, updated: m.
        exp_avg_sqs: like the parameters, updated: v.
        steps: float32 with one element for each, on the parameters' device: the steps done so far, advanced by one.
        lr: learning rate, for all tensors or for each.
        betas: decay of m and of v.
        eps: added to the root of v.
        weight_decay: for all tensors or for each.
        decoupled: decay the weights themselves (AdamW) instead of adding to the gradient (Adam).
        maximize: follow the gradient instead of going against it.
        backups: what the parameters were before `sam_perturb_`: the step starts from these. Empty: from the parameters.
        grad_scale: the gradients are divided by it.
        found_inf: not 0: restore the backups, change nothing else.
        backend: auto, triton, cuda, cpu or reference.
    """
    arguments = _prepare_adamw(
        params, grads, exp_avgs, exp_avg_sqs, steps, lr, betas, eps, weight_decay, decoupled, maximize, backups, grad_scale, found_inf, backend
    )
    torch.ops.vtkernels.adamw_step_.default(*arguments)


def _prepare_sgd(
    params, grads, momentum_buffers, lr, momentum, weight_decay, nesterov, decoupled, maximize, backups, grad_scale, found_inf, backend
) -> tuple[Any, ...]:
    name = SGD.name
    params = check_params(name, params)
    grads, backups = _common(SGD.name, params, grads, backups, grad_scale, found_inf)
    check_range(name, "momentum", [momentum], 0.0, 1.0, "0.9 is usual")
    if nesterov and not momentum:
        check.fail(name, "momentum", "be positive with nesterov", momentum, "0.9 is usual")
    if not momentum and len(momentum_buffers):
        check.fail(name, "momentum_buffers", "be empty without momentum", f"{len(momentum_buffers)} tensors", "pass momentum=0.9, or no buffers")
    buffers = check_beside(name, "momentum_buffers", momentum_buffers, params) if momentum else []
    lr, weight_decay = _rates(name, params, lr, weight_decay)
    SGD.check_name(backend)
    return params, grads, buffers, backups, lr, weight_decay, float(momentum), bool(nesterov), bool(decoupled), bool(maximize), grad_scale, found_inf, backend


def _prepare_adamw(
    params, grads, exp_avgs, exp_avg_sqs, steps, lr, betas, eps, weight_decay, decoupled, maximize, backups, grad_scale, found_inf, backend
) -> tuple[Any, ...]:
    name = ADAMW.name
    params = check_params(name, params)
    grads, backups = _common(name, params, grads, backups, grad_scale, found_inf)
    exp_avgs, exp_avg_sqs = check_beside(name, "exp_avgs", exp_avgs, params), check_beside(name, "exp_avg_sqs", exp_avg_sqs, params)
    steps = listed(name, "steps", steps)
    if len(steps) != len(params):
        check.fail(name, "steps", f"hold a tensor for each of the {len(params)} params", len(steps))
    for i, step in enumerate(steps):
        check_flag(name, f"steps[{i}]", step, params[0].device)
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        check.fail(name, "betas", "be two numbers", betas, "(0.9, 0.999) is usual", TypeError)
    check_range(name, "betas", betas, 0.0, 1.0, "(0.9, 0.999) is usual")
    check_range(name, "eps", [eps], 0.0, _INFINITY)
    rates = _rates(name, params, lr, weight_decay)
    ADAMW.check_name(backend)
    scalars = (float(betas[0]), float(betas[1]), float(eps), bool(decoupled), bool(maximize))
    return params, grads, exp_avgs, exp_avg_sqs, steps, backups, *rates, *scalars, grad_scale, found_inf, backend


def _common(name, params, grads, backups, grad_scale, found_inf) -> tuple[list[Tensor], list[Tensor]]:
    check_flag(name, "grad_scale", grad_scale, params[0].device)
    check_flag(name, "found_inf", found_inf, params[0].device)
    backups = listed(name, "backups", () if backups is None else backups)
    return check_beside(name, "grads", grads, params), check_beside(name, "backups", backups, params) if backups else backups


def _rates(name, params, lr, weight_decay) -> tuple[list[float], list[float]]:
    lr, weight_decay = per_tensor(name, "lr", lr, params, float), per_tensor(name, "weight_decay", weight_decay, params, float)
    check_range(name, "lr", lr, 0.0, _INFINITY)
    check_range(name, "weight_decay", weight_decay, 0.0, _INFINITY)
    return lr, weight_decay


def _sgd(*args: Any) -> None:
    call = SgdStep(*args[:-1])
    run = SGD.select("forward", args[-1], call)
    run(call)
    written(call.params, call.momentum_buffers)


def _adamw(*args: Any) -> None:
    call = AdamWStep(*args[:-1])
    run = ADAMW.select("forward", args[-1], call)
    run(call)
    written(call.params, call.exp_avgs, call.exp_avg_sqs, call.steps)


def _fake(*args: Any) -> None:
    return None


define(
    "sgd_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor[] backups, float[] lr, float[] weight_decay, float momentum, "
    "bool nesterov, bool decoupled, bool maximize, Tensor? grad_scale, Tensor? found_inf, str backend) -> ()",
    _sgd,
    _fake,
)
define(
    "adamw_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, Tensor[] backups, float[] lr, "
    "float[] weight_decay, float beta1, float beta2, float eps, bool decoupled, bool maximize, Tensor? grad_scale, Tensor? found_inf, str backend) -> ()",
    _adamw,
    _fake,
)

SGD.explains(sgd_step_, lambda **arguments: SgdStep(*_prepare_sgd(**arguments)[:-1]), lambda device: _example_tensors(device, "params", "grads") | {"lr": 0.1})
ADAMW.explains(
    adamw_step_,
    lambda **arguments: AdamWStep(*_prepare_adamw(**arguments)[:-1]),
    lambda device: _example_tensors(device, "params", "grads", "exp_avgs", "exp_avg_sqs") | {"steps": [torch.zeros((), device=device)], "lr": 1e-3},
)
