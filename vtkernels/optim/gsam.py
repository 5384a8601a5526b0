"""Surrogate gap guided SAM."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.optim import vectors
from vtkernels.optim.memory import MixingSAM


class GSAM(MixingSAM):
    """Surrogate gap guided SAM (Zhuang et al., 2022): lowers the perturbed loss and, across that, its distance to the loss.

    With g of pass one and g_p of pass two, the base step sees g_p - alpha * (g - <g, g_p> / |g_p|^2 * g_p), which leaves the part
    along g_p as it is. The radius follows the learning rate of its group:
    rho = rho_min + (rho_max - rho_min) * (lr - lr_min) / (lr_max - lr_min), never outside rho_min and rho_max.
    Costs two passes, and one copy of the gradients beside SAM's copy of the parameters (none with alpha = 0).

    With a GradScaler use `with sam.perturbed(): ...`: at the end of the block both gradients still have the same scale and are mixed;
    unscale and clip after it.

    Args:
        params: parameters, or groups of them, which may set lr_max and lr_min for themselves.
        base_optimizer: the class of the optimizer that makes the step.
        rho_max: radius at lr_max.
        rho_min: radius at lr_min.
        alpha: how much of the part across is subtracted; 0 with rho_min = rho_max is SAM.
        lr_max: the largest learning rate; None: the one that a group begins with, before any scheduler, or the max_lr of OneCycleLR.
        lr_min: the smallest one; None: 0.01 * lr_max.
        minimize_fp: False: g + alpha * (g_p - <g_p, g> / |g|^2 * g), which follows the loss itself.
        options: those of `SAM` and of the base optimizer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: Callable[..., torch.optim.Optimizer],
        rho_max: float = 0.6,
        rho_min: float = 0.1,
        alpha: float = 0.6,
        *,
        lr_max: float | None = None,
        lr_min: float | None = None,
        minimize_fp: bool = True,
        **options: Any,
    ):
        if "rho" in options:
            check.fail("GSAM", "rho", "be given as rho_max and rho_min", options["rho"], "the learning rate decides between them", TypeError)
        for name, value in (("rho_max", rho_max), ("rho_min", rho_min), ("alpha", alpha)):
            if not 0.0 <= value < float("inf"):
                check.fail("GSAM", name, "be at least 0 and finite", value)
        self.rho_max, self.rho_min, self.alpha, self.minimize_fp = float(rho_max), float(rho_min), float(alpha), minimize_fp
        self._lr_range = (lr_max, lr_min)
        super().__init__(params, base_optimizer, rho_max, **options)
        for group in self.param_groups:
            self._note_lr(group)

    _copied = (*MixingSAM._copied, "rho_max", "rho_min", "alpha", "minimize_fp", "_lr_range")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if self.base_optimizer is not None:
            self._note_lr(self.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        ranges = [{name: group[name] for name in ("lr_max", "lr_min")} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, ranges, strict=True):
            for name, value in own.items():
                group.setdefault(name, value)

    def rho_of(self, group: dict[str, Any]) -> float:
        """The radius at the group's learning rate of now."""
        low, high = group["lr_min"], group["lr_max"]
        peak = group.get("max_lr")
        if self._lr_range[0] is None and peak is not None and peak > high:
            # OneCycleLR notes it, and begins far below
            low, high = (0.01 * peak if self._lr_range[1] is None else low), peak
        progress = (float(group["lr"]) - low) / (high - low) if high != low else 1.0
        # a warm-up may begin below lr_min
        return self.rho_min + (self.rho_max - self.rho_min) * min(max(progress, 0.0), 1.0)

    def _note_lr(self, group: dict[str, Any]) -> None:
        lr_max, lr_min = self._lr_range
        if group.get("lr_max") is None:
            group["lr_max"] = float(group["lr"] if lr_max is None else lr_max)
        if group.get("lr_min") is None:
            group["lr_min"] = 0.01 * group["lr_max"] if lr_min is None else float(lr_min)

    def _neighbourhood(self, group: dict[str, Any], param: Tensor) -> tuple[float, bool, float]:
        return self.rho_of(group), group["adaptive"], group["eta"]

    @property
    def _mixes(self) -> bool:
        return self.alpha != 0 or not self.minimize_fp

    def _mix(self, params: list[Tensor], first: list[Tensor], second: list[Tensor]) -> None:
        if hasattr(self, "grad_scale") and self.grad_scale is None:
            raise RuntimeError(
                "GSAM: the gradients of pass two must have the scale of those of pass one, got them unscaled; "
                "run pass two in `with sam.perturbed():` and call scaler.unscale_ after it"
            )
        both = vectors.products(params, first, second, self.backend)
        if self.minimize_fp:
            vectors.scale_(second, 1 + self.alpha * vectors.quotient(both.xy, both.yy))
            vectors.add_(second, first, -self.alpha)
        else:
            vectors.scale_(second, self.alpha)
            vectors.add_(second, first, 1 - self.alpha * vectors.quotient(both.xy, both.xx))
