"""LookSAM: a second pass in every k-th step only."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.optim import vectors
from vtkernels.optim.memory import MixingSAM, RememberingSAM


class LookSAM(MixingSAM, RememberingSAM):
    """LookSAM-k (Liu et al., 2022): what the second pass adds changes slowly, so it is computed in every k-th step and reused.

    In step 0, k, 2k, ...: SAM; and of its gradient g_p the part across the plain gradient g is remembered,
    v = g_p - <g_p, g> / |g|^2 * g. In the steps between: g + alpha * |g| / (|v| + 1e-12) * v.
    Costs 1 + 1 / k passes; v and the gradients of pass one are two copies beside SAM's copy of the parameters. v is part of the
    `state_dict`. A GradScaler's scale cancels; a step with an inf in either pass leaves v as it was.

    The k-1 steps between need no second pass: `sam.first_step()` returns False and `with sam.perturbed() as wanted:` gives False.

    Args:
        params: parameters, or groups of them.
        base_optimizer: the class of the optimizer that makes the step.
        rho: radius of the neighbourhood.
        k: a second pass in each k-th step.
        alpha: how much of v is added, in lengths of g.
        options: those of `SAM` but `every`, and of the base optimizer.
    """

    memory_name = "look_sam"
    _copied = (*RememberingSAM._copied, "alpha")

    def __init__(
        self, params: Iterable[Any], base_optimizer: Callable[..., torch.optim.Optimizer], rho: float = 0.1, *, k: int = 5, alpha: float = 0.7, **options: Any
    ):
        if "every" in options:
            check.fail("LookSAM", "every", "be given as k", options["every"], "", TypeError)
        if not 0.0 <= alpha < float("inf"):
            check.fail("LookSAM", "alpha", "be at least 0 and finite", alpha, "0.7 is usual")
        self.alpha = float(alpha)
        super().__init__(params, base_optimizer, rho, every=k, **options)

    def _before_base_step(self) -> None:
        super()._before_base_step()
        if self.enabled and not self.two_passes_wanted:
            self._reuse([param for param in self._all_params() if param.grad is not None])

    def _mix(self, params: list[Tensor], first: list[Tensor], second: list[Tensor]) -> None:
        both = vectors.products(params, first, second, self.backend)
        across = vectors.plus(second, first, -vectors.quotient(both.xy, both.xx))
        lost = (~torch.isfinite(both.xx + both.yy)).float()
        vectors.blend_(self._remembered(params), across, [1.0] * len(params), lost, None, self.backend)

    def _reuse(self, params: list[Tensor]) -> None:
        if not (params and self._memory):
            return
        grads, remembered = [param.grad for param in params], self._remembered(params)
        length, remembered_length = (vectors.square_sum(params, vector, self.backend).sqrt() for vector in (grads, remembered))
        vectors.add_(grads, remembered, self.alpha * length / (remembered_length + 1e-12))
