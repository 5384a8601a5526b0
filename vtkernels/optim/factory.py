"""Optimizers by name."""

import difflib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from vtkernels._core import check
from vtkernels.optim.lamb import LAMB
from vtkernels.optim.rmsprop import RMSpropTF
from vtkernels.optim.sgdw import SGDW
from vtkernels.optim.shards import is_sharded

# the class, and what recipes mean by the name unless they say otherwise
OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"momentum": 0.9}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True}),
    "sgdw": (SGDW, {"momentum": 0.9}),
    "adam": (Adam, {}),
    "adamw": (AdamW, {}),
    "lamb": (LAMB, {}),
    "rmsprop": (RMSpropTF, {"alpha": 0.9, "momentum": 0.9, "eps": 1e-3}),
}


def create_optimizer(name: str, params: Iterable[Tensor] | Iterable[dict[str, Any]], *, lr: float, weight_decay: float = 0.0, **options: Any) -> Optimizer:
    """The optimizer of that name, with torch's fused step where it has one for these parameters.

    Args:
        name: one of `OPTIMIZERS`.
        params: parameters, or groups as `param_groups` makes them, whose own values come first.
        lr: learning rate; a group's is this times its `lr_scale`.
        weight_decay: where a group has none of its own.
        options: of the optimizer's class; those that are None are left to it.
    """
    kind, options = optimizer_class(name, **options)
    groups = [dict(entry) if isinstance(entry, dict) else entry for entry in params]
    if not groups:
        check.fail("create_optimizer", "params", "be parameters or groups of them", "none", "is everything frozen?")
    if isinstance(groups[0], dict):
        for group in groups:
            group.setdefault("lr", lr * group.get("lr_scale", 1.0))
            group["params"] = list(group["params"])
        tensors = [param for group in groups for param in group["params"]]
    else:
        tensors = groups
    if kind in (SGD, Adam, AdamW) and not options.keys() & {"fused", "foreach"}:
        options["fused"] = _has_fused(tensors)
    return kind(groups, lr=lr, weight_decay=weight_decay, **options)


def optimizer_class(name: str, **options: Any) -> tuple[type[Optimizer], dict[str, Any]]:
    """The class and its options, for `SAM(params, kind, **options)`."""
    if name not in OPTIMIZERS:
        near = difflib.get_close_matches(name, OPTIMIZERS, 1)
        check.fail("create_optimizer", "name", f"be one of {', '.join(OPTIMIZERS)}", repr(name), f"did you mean {near[0]!r}?" if near else "")
    kind, defaults = OPTIMIZERS[name]
    return kind, {**defaults, **{option: value for option, value in options.items() if value is not None}}


def _has_fused(tensors: list[Tensor]) -> bool:
    # the fused kernels do not know DTensors on every torch that is supported
    return all(p.device.type in ("cpu", "cuda") and torch.is_floating_point(p) and not is_sharded(p) for p in tensors)
