"""The base optimizer's step, fused with the way back from the perturbation where one op does both.

An optimizer whose step is such an op is entered in `FUSED`; any other is restored first and then steps by itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from vtkernels.ops.sam import sam_restore_
from vtkernels.ops.sam.unchecked import adamw_step_, sgd_step_
from vtkernels.optim.shards import local


class Piece(NamedTuple):
    """Parameters of one group with a gradient: either each has a backup, or there are none."""

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    backups: list[Tensor]


class Scaling(NamedTuple):
    """What a GradScaler says: gradients are `grad_scale` times too large; where `found_inf` is not 0, nothing may change."""

    grad_scale: Tensor | None
    found_inf: Tensor | None


# prepares the launches of a step of (base, pieces, scaling, backend); None if it cannot step so, with nothing changed
Prepare = Callable[[Optimizer, list[Piece], Scaling, str], list[Callable[[], None]] | None]
FUSED: dict[type[Optimizer], Prepare] = {}


def base_step(base: Optimizer, pieces: list[Piece], scaling: Scaling, backend: str) -> None:
    """From the backups (or from the parameters) to the base optimizer's next parameters."""
    launches = None
    if type(base) in FUSED and not _watched(base) and all(_wants_ours(piece.group) for piece in pieces):
        launches = FUSED[type(base)](base, pieces, scaling, backend)
    if launches is None:
        _step_by_itself(base, pieces, scaling, backend)
    else:
        for launch in launches:
            launch()
    # what a scheduler of the learning rate looks at
    base._opt_called = True


def merged(pieces: list[Piece], *shared: str) -> list[tuple[dict[str, Any], Piece, list[float], list[float]]]:
    """Pieces whose groups agree in the `shared` hyperparameters as one, with the learning rate and weight decay of each tensor."""
    found: dict[tuple, tuple] = {}
    for group, params, grads, backups in pieces:
        # a checkpoint may have brought betas as a list
        options = {name: tuple(value) if isinstance(value := group[name], list) else value for name in shared}
        key = (*options.values(), bool(backups))
        if key not in found:
            found[key] = (options, Piece(group, [], [], []), [], [])
        _, piece, lr, weight_decay = found[key]
        piece.params.extend(params)
        piece.grads.extend(grads)
        piece.backups.extend(backups)
        lr.extend([group["lr"]] * len(params))
        weight_decay.extend([group["weight_decay"]] * len(params))
    return list(found.values())


def state_of(base: Optimizer, params: list[Tensor], name: str) -> list[Tensor] | None:
    """The state `name` of each parameter, zeros at first; None if one is not of its parameter's shape, dtype and device."""
    return _beside(params, [base.state[param] for param in params], name)


def _beside(params: list[Tensor], states: list[dict[str, Any]], name: str) -> list[Tensor] | None:
    tensors = []
    for param, state in zip(params, states, strict=True):
        tensor = state.get(name)
        if tensor is None:
            tensor = state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if tensor.shape != param.shape or tensor.dtype != param.dtype or tensor.device != param.device:
            return None
        if tensor.stride() != param.stride():
            # a parameter's layout may have changed (channels_last): kernels walk both side by side
            tensor = state[name] = torch.empty_like(param, memory_format=torch.preserve_format).copy_(tensor)
        tensors.append(tensor)
    return tensors


def _steps(params: list[Tensor], states: list[dict[str, Any]]) -> list[Tensor] | None:
    """How many steps each parameter has made, on its device; None if the count is held elsewhere or in another type."""
    device, steps = params[0].device, []
    for state in states:
        step = state.get("step")
        if step is None:
            step = state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        if not isinstance(step, Tensor) or step.dtype != torch.float32 or step.device != device:
            return None
        steps.append(step)
    return steps


def _sgd(base: Optimizer, pieces: list[Piece], scaling: Scaling, backend: str) -> list[Callable[[], None]] | None:
    if any(group["dampening"] or group["momentum"] >= 1 for group, *_ in pieces):
        return None
    launches = []
    for options, piece, lr, weight_decay in merged(pieces, "momentum", "nesterov", "maximize"):
        buffers = state_of(base, piece.params, "momentum_buffer") if options["momentum"] else []
        if buffers is None:
            return None
        tensors = (local(piece.params), local(piece.grads), local(buffers))
        options |= {"lr": lr, "weight_decay": weight_decay, "backups": piece.backups, "backend": backend, **scaling._asdict()}
        launches.append(lambda tensors=tensors, options=options: sgd_step_(*tensors, **options))
    return launches


def _adam(base: Optimizer, pieces: list[Piece], scaling: Scaling, backend: str) -> list[Callable[[], None]] | None:
    for group, params, *_ in pieces:
        # torch keeps the count of steps on the CPU unless one of these is asked for
        on_cpu = not (group["fused"] or group["capturable"])
        if group["amsgrad"] or any(isinstance(beta, Tensor) for beta in group["betas"]) or (on_cpu and params[0].device.type != "cpu"):
            return None
    launches = []
    for options, piece, lr, weight_decay in merged(pieces, "betas", "eps", "maximize", "decoupled_weight_decay"):
        options["decoupled"] = options.pop("decoupled_weight_decay")
        states = [base.state[param] for param in piece.params]
        steps = _steps(piece.params, states)
        exp_avgs, exp_avg_sqs = (_beside(piece.params, states, name) for name in ("exp_avg", "exp_avg_sq"))
        if steps is None or exp_avgs is None or exp_avg_sqs is None:
            return None
        tensors = (local(piece.params), local(piece.grads), local(exp_avgs), local(exp_avg_sqs), steps)
        options |= {"lr": lr, "weight_decay": weight_decay, "backups": piece.backups, "backend": backend, **scaling._asdict()}
        launches.append(lambda tensors=tensors, options=options: adamw_step_(*tensors, **options))
    return launches


FUSED[torch.optim.SGD] = _sgd
FUSED[torch.optim.Adam] = _adam
FUSED[torch.optim.AdamW] = _adam


def _watched(base: Optimizer) -> bool:
    """Somebody wants to see the base optimizer's own step being called."""
    patched = base.__dict__.get("step")
    by_other_than_scheduler = patched is not None and not hasattr(patched, "_wrapped_by_lr_sched")
    return bool(base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks or by_other_than_scheduler)


def _wants_ours(group: dict[str, Any]) -> bool:
    """Who asks for one of torch's implementations gets it; a tensor as learning rate is read by torch's own only."""
    chosen = group.get("foreach") is not None or group.get("fused") is False
    numbers = isinstance(group["lr"], (int, float)) and isinstance(group["weight_decay"], (int, float))
    return numbers and not chosen and not group.get("differentiable")


def _step_by_itself(base: Optimizer, pieces: list[Piece], scaling: Scaling, backend: str) -> None:
    perturbed = [piece for piece in pieces if piece.backups]
    if perturbed:
        sam_restore_(local([p for piece in perturbed for p in piece.params]), [b for piece in perturbed for b in piece.backups], backend=backend)
    if getattr(base, "_step_supports_amp_scaling", False):
        base.grad_scale, base.found_inf = scaling
        try:
            base.step()
        finally:
            del base.grad_scale, base.found_inf
        return
    # an optimizer that cannot be told on the device: the host must know, as in GradScaler's own step
    if scaling.found_inf is not None and not _capturing(scaling.found_inf) and bool(scaling.found_inf):
        return
    if scaling.grad_scale is not None:
        inverse = scaling.grad_scale.double().reciprocal().float()
        torch._foreach_mul_(local([grad for piece in pieces for grad in piece.grads]), inverse)
    base.step()


def _capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
