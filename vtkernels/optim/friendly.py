"""Friendly SAM: climb along what is particular to the batch."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.optim import vectors
from vtkernels.optim.memory import RememberingSAM
from vtkernels.optim.sam import Perturbed


class FriendlySAM(RememberingSAM):
    """Friendly SAM (Li et al., 2024): the full gradient, a running mean of those of pass one, is taken out of the climb.

    d = g - sigma * m; m = lambda * m + (1 - lambda) * g; eps = rho * d / (|d| + 1e-12). In the first call m = d = g. As in the
    authors' code d sees m from before its update. Costs two passes, and one copy (m) beside SAM's copy of the parameters, and one
    more (d) while climbing. m is part of the `state_dict`. A gradient with an inf leaves m as it was.

    Args:
        params: parameters, or groups of them.
        base_optimizer: the class of the optimizer that makes the step.
        rho: radius of the neighbourhood; 0.2 is the authors' for a ResNet-18 on CIFAR.
        sigma: how much of the mean is taken out.
        lmbda: how much of the mean stays in each step; the authors also run 0.6 and 0.95.
        scaler: the GradScaler in use, if there is one: its scale changes, the mean is one of unscaled gradients.
        options: those of `SAM` and of the base optimizer.
    """

    memory_name = "friendly_sam"
    _copied = (*RememberingSAM._copied, "sigma", "lmbda")

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: Callable[..., torch.optim.Optimizer],
        rho: float = 0.2,
        *,
        sigma: float = 1.0,
        lmbda: float = 0.9,
        scaler: torch.amp.GradScaler | None = None,
        **options: Any,
    ):
        if not 0.0 <= sigma < float("inf"):
            check.fail("FriendlySAM", "sigma", "be at least 0 and finite", sigma, "1 is usual")
        if not 0.0 <= lmbda < 1.0:
            check.fail("FriendlySAM", "lmbda", "be at least 0 and below 1", lmbda, "0.9 is usual")
        self.sigma, self.lmbda, self.scaler = float(sigma), float(lmbda), scaler
        super().__init__(params, base_optimizer, rho, **options)

    def _reset(self) -> None:
        super()._reset()
        self.scaler = getattr(self, "scaler", None)
        # parameters whose mean began in the last call
        self._new: list[Tensor] = []

    def _climb(self, target: Perturbed, grads: list[Tensor]) -> Tensor:
        if self._new and bool(self.first_found_inf):
            # the first call has yet to come; the host asks only until it has
            for param in self._new:
                self._memory.pop(param, None)
        self._new = [param for param in target.params if param not in self._memory]
        weights = [1 - self.lmbda if param in self._memory else 1.0 for param in target.params]
        means = self._remembered(target.params)
        scale = None
        if self.scaler is not None and self.scaler.is_enabled():
            scale = self.scaler.scale(torch.ones((), device=target.local[0].device))
        norm = super()._climb(target, vectors.plus(grads, means, -self.sigma if scale is None else -self.sigma * scale))
        vectors.blend_(means, grads, weights, self.first_found_inf, scale, self.backend)
        return norm
