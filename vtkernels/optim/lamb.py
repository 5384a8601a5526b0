"""LAMB: Adam whose step is measured by the length of each tensor."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vtkernels._core import check
from vtkernels.ops.sam import sam_square_sum
from vtkernels.ops.sam.common import check_beside, check_params, check_range, compute_dtype
from vtkernels.optim import shards

# elements; the temporary of a tensor is padded to whole rows, which costs a bias of 1 element 1 KB
_ROW = 256


class LAMB(Optimizer):
    """Layer-wise adaptive moments (You et al., 2020), as apex's FusedLAMB and timm's Lamb compute it.

    g /= max(1, norm of all gradients / max_grad_norm); m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g^2;
    u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * w; w -= lr * |w| / |u| * u,
    where |w| / |u| is that of each tensor, and 1 if either is 0.

    A few launches for each group, however many tensors; norms and ratios stay on the device. Gradients are clipped by their true
    norm: a GradScaler unscales them before this step, and so must who scales by hand.

    Args:
        params: parameters or groups of them. t counts the steps of a group.
        lr: learning rate; DeiT III uses 3e-3 to 4e-3.
        betas: decay of m and of v.
        eps: added to the root of v.
        weight_decay: added to u. Tensors of a group without it are not rescaled, unless `always_adapt`.
        bias_correction: divide m and v by what is missing of their weights' sum.
        grad_averaging: False: m = beta1 * m + g.
        max_grad_norm: of all gradients of all groups together. None: do not clip.
        trust_clip: |w| / |u| is at most 1 (LAMBC).
        always_adapt: rescale tensors without weight decay too.
        decoupled_decay: w *= 1 - lr * weight_decay in place of adding to u.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        grad_averaging: bool = True,
        max_grad_norm: float | None = 1.0,
        trust_clip: bool = False,
        always_adapt: bool = False,
        decoupled_decay: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "grad_averaging": grad_averaging,
            "max_grad_norm": max_grad_norm,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
            "decoupled_decay": decoupled_decay,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        options = {**self.defaults, **param_group}
        for name in ("lr", "eps", "weight_decay"):
            check_range("LAMB", name, [options[name]], 0.0, float("inf"))
        check_range("LAMB", "betas", options["betas"], 0.0, 1.0, "(0.9, 0.999) is usual")
        limit, common = options["max_grad_norm"], self.defaults["max_grad_norm"]
        if limit != common:
            check.fail("LAMB", "max_grad_norm", f"be that of all groups ({common})", limit, "it limits the norm of all gradients together")
        if limit is not None and not limit > 0:
            check.fail("LAMB", "max_grad_norm", "be positive or None", limit, "None does not clip")
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] = int(group.get("step", 0)) + 1
        clip = self._clip()
        for group in self.param_groups:
            for params in _alike([param for param in group["params"] if param.grad is not None]):
                self._update(group, params, clip)
        return loss

    def _clip(self) -> Tensor | None:
        """What all gradients are divided by."""
        limit = self.param_groups[0]["max_grad_norm"]
        params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        by_device: dict[torch.device, list[Tensor]] = {}
        for param in params:
            if shards.is_sharded(param):
                check.fail("LAMB", "params", "be whole", "a DTensor", "its trust ratio needs the whole tensor: use AdamW with FSDP2", TypeError)
            by_device.setdefault(param.device, []).append(param)
        total = None
        for params in by_device.values():
            grads = check_beside("LAMB", "grads", [param.grad for param in params], check_params("LAMB", params))
            if limit is not None:
                square_sum = sam_square_sum(params, grads)
                total = square_sum if total is None else total + square_sum.to(total.device)
        return None if total is None else (total.sqrt() / limit).clamp_(min=1.0)

    def _update(self, group: dict[str, Any], params: list[Tensor], clip: Tensor | None) -> None:
        states = [self.state[param] for param in params]
        for param, state in zip(params, states, strict=True):
            if not state:
                state.update(exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
        stored = (params, [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states])
        dtype = compute_dtype(params[0])
        weights, m, v = (_in_dtype(tensors, dtype) for tensors in stored)
        grads = _in_dtype([param.grad for param in params], dtype)
        if clip is not None:
            grads = torch._foreach_div(grads, clip.to(params[0].device, dtype))

        (beta1, beta2), t = group["betas"], group["step"]
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, grads, alpha=1 - beta1 if group["grad_averaging"] else 1.0)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)

        correction1, correction2 = (1 - beta1**t, 1 - beta2**t) if group["bias_correction"] else (1.0, 1.0)
        denominators = torch._foreach_sqrt(v)
        torch._foreach_div_(denominators, correction2**0.5)
        torch._foreach_add_(denominators, group["eps"])
        rows, steps = _rows_like(weights)
        torch._foreach_copy_(steps, m)
        torch._foreach_div_(steps, correction1)
        torch._foreach_div_(steps, denominators)
        del denominators

        if group["weight_decay"] and group["decoupled_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"]:
            torch._foreach_add_(steps, weights, alpha=group["weight_decay"])
        if group["weight_decay"] or group["always_adapt"]:
            ratios = _trust(weights, steps, group["trust_clip"])
            rows *= torch.cat([ratio.expand(_rows_of(step)) for ratio, step in zip(ratios, steps, strict=True)])[:, None]
        torch._foreach_add_(weights, steps, alpha=-group["lr"])

        for tensors, new in zip(stored, (weights, m, v), strict=True):
            if new is not tensors:
                torch._foreach_copy_(tensors, new)


def _trust(weights: list[Tensor], steps: list[Tensor], clipped: bool) -> Tensor:
    """How long each weight is beside its step, 1 where either has no length."""
    lengths, step_lengths = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(steps))
    ratios = torch.where((lengths > 0) & (step_lengths > 0), lengths / step_lengths, 1.0)
    return ratios.clamp(max=1.0) if clipped else ratios


def _rows_like(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A matrix, and views of it like the tensors, each from the start of a row on: one launch can scale each by its own factor."""
    rows = tensors[0].new_empty(sum(map(_rows_of, tensors)), _ROW)
    views, start = [], 0
    for tensor in tensors:
        dense = torch.ops.aten.is_non_overlapping_and_dense.default(tensor)
        # foreach is one launch only where strides agree
        views.append(rows.as_strided(tensor.shape, tensor.stride() if dense else tensor.contiguous().stride(), start * _ROW))
        start += _rows_of(tensor)
    return rows, views


def _rows_of(tensor: Tensor) -> int:
    return -(-tensor.numel() // _ROW)


def _in_dtype(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The tensors themselves where they are in that dtype, else copies."""
    if tensors[0].dtype == dtype:
        return tensors
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return copies


def _alike(params: list[Tensor]) -> list[list[Tensor]]:
    """The parameters by device and dtype."""
    found: dict[tuple, list[Tensor]] = {}
    for param in params:
        found.setdefault((param.device, param.dtype), []).append(param)
    return list(found.values())
