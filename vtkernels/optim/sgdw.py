"""SGD with decoupled weight decay."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from vtkernels._core import check
from vtkernels.ops.sam import sgd_step_
from vtkernels.ops.sam.common import check_range
from vtkernels.optim.base_step import FUSED, Piece, Scaling, merged, state_of
from vtkernels.optim.shards import local


class SGDW(Optimizer):
    """SGD whose weight decay shrinks the weights themselves and never enters the momentum (Loshchilov and Hutter, 2019), as in timm.

    w *= 1 - lr * weight_decay; buf = momentum * buf + g; w -= lr * (buf, or with Nesterov g + momentum * buf).

    One kernel call does this for all tensors of all groups that agree in momentum, Nesterov and direction. A GradScaler's scale is
    taken out and its inf is obeyed inside that call, so that nothing waits for the device. `vt.optim.SAM` fuses it with the restoring.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: 0 to below 1.
        weight_decay: applied as lr * weight_decay.
        nesterov: Nesterov's momentum.
        corrected_weight_decay: decay by lr^2 / max_lr * weight_decay (Defazio, 2025). The group's `max_lr` is the lr it was added with,
            unless it names one (OneCycleLR does).
        maximize: follow the gradient instead of going against it.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        corrected_weight_decay: bool = False,
        maximize: bool = False,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "corrected_weight_decay": corrected_weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        options = {**self.defaults, **param_group}
        for name in ("lr", "weight_decay"):
            check_range("SGDW", name, [options[name]], 0.0, float("inf"))
        check_range("SGDW", "momentum", [options["momentum"]], 0.0, 1.0, "0.9 is usual")
        if options["nesterov"] and not options["momentum"]:
            check.fail("SGDW", "momentum", "be positive with nesterov", options["momentum"], "0.9 is usual")
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("max_lr", options["lr"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # the state of torch.optim.SGD or of timm's SGDW fits, but for what those do not know
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            group.setdefault("max_lr", group.get("initial_lr", group["lr"]))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pieces: dict[torch.device, list[Piece]] = {}
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    pieces.setdefault(param.device, []).append(Piece(group, [param], [param.grad], []))
        flags = (getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        for device, there in pieces.items():
            scaling = Scaling(*(flag if flag is None else flag.to(device, non_blocking=True) for flag in flags))
            for launch in _launches(self, there, scaling, "auto"):
                launch()
        return loss


def _launches(base: SGDW, pieces: list[Piece], scaling: Scaling, backend: str) -> list[Callable[[], None]]:
    launches = []
    pieces = [piece._replace(group={**piece.group, "weight_decay": _decay(piece.group)}) for piece in pieces]
    for options, piece, lr, weight_decay in merged(pieces, "momentum", "nesterov", "maximize"):
        buffers = state_of(base, piece.params, "momentum_buffer") if options["momentum"] else []
        if buffers is None:
            hint = "is the checkpoint of another model? build the optimizer after moving the model"
            check.fail("SGDW", "momentum_buffer", "have the shape, dtype and device of its parameter", "others", hint)
        tensors = (local(piece.params), local(piece.grads), local(buffers))
        options |= {"lr": lr, "weight_decay": weight_decay, "backups": piece.backups, "backend": backend, **scaling._asdict()}
        launches.append(lambda tensors=tensors, options=options: sgd_step_(*tensors, decoupled=True, **options))
    return launches


FUSED[SGDW] = _launches


def _decay(group: dict[str, Any]) -> float:
    corrected = group["corrected_weight_decay"] and group["max_lr"]
    return group["weight_decay"] * (group["lr"] / group["max_lr"] if corrected else 1.0)
