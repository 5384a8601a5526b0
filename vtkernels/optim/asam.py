"""Adaptive SAM as its authors run it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vtkernels.optim.sam import SAM


class ASAM(SAM):
    """Adaptive sharpness-aware minimisation (Kwon et al., 2021): weights with |w| + eta as their unit of length.

    eps = rho * T^2 g / (|T g| + 1e-16), with T = |w| + eta for tensors of two dimensions and more and T = 1 for biases and norms.
    Multiplying one layer by c and dividing the next one by it changes nothing then (with eta = 0). Costs what SAM does.
    (`SAM(..., adaptive=True)` is davda54's: every tensor is stretched, eta = 0.)

    Args:
        params: parameters, or groups of them, which may set rho and eta, or adaptive=False, for themselves.
        base_optimizer: the class of the optimizer that makes the step.
        rho: radius in those units; the authors use 0.5 for CIFAR-10 and 1.0 for CIFAR-100.
        eta: keeps zero weights from being stuck.
        options: those of `SAM` and of the base optimizer.
    """

    def __init__(self, params: Iterable[Any], base_optimizer: Callable[..., torch.optim.Optimizer], rho: float = 0.5, *, eta: float = 0.01, **options: Any):
        super().__init__(params, base_optimizer, rho, adaptive=True, eta=eta, **{"perturb_eps": 1e-16, **options})

    def _neighbourhood(self, group: dict[str, Any], param: Tensor) -> tuple[float, bool, float]:
        rho, adaptive, eta = super()._neighbourhood(group, param)
        return rho, adaptive and param.dim() > 1, eta
