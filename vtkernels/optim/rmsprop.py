"""RMSProp as TensorFlow computes it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vtkernels.ops.sam.common import check_range


class RMSpropTF(Optimizer):
    """RMSProp with TensorFlow's three differences, which EfficientNets were trained with (timm's RMSpropTF).

    v = alpha * v + (1 - alpha) * g^2, from v = 1; buf = momentum * buf + lr * g / sqrt(v + eps); w -= buf.
    torch starts from v = 0, adds eps to the root, and keeps lr out of the buffer.

    Args:
        params: parameters or groups of them.
        lr: learning rate; EfficientNet: 0.256 for a batch of 4096.
        alpha: decay of v.
        momentum: 0 to below 1.
        eps: added to v, inside the root.
        weight_decay: times w, added to g; with `decoupled_decay`, w *= 1 - lr * weight_decay.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.9,
        *,
        momentum: float = 0.9,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        decoupled_decay: bool = False,
    ):
        defaults = {"lr": lr, "alpha": alpha, "momentum": momentum, "eps": eps, "weight_decay": weight_decay, "decoupled_decay": decoupled_decay}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        options = {**self.defaults, **param_group}
        for name in ("lr", "eps", "weight_decay"):
            check_range("RMSpropTF", name, [options[name]], 0.0, float("inf"))
        for name in ("alpha", "momentum"):
            check_range("RMSpropTF", name, [options[name]], 0.0, 1.0, "0.9 is usual")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple, list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    alike.setdefault((param.device, param.dtype), []).append(param)
            for params in alike.values():
                self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for param in params:
            if not self.state[param]:
                self.state[param]["square_avg"] = torch.ones_like(param)
                if group["momentum"]:
                    self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        grads = [param.grad for param in params]
        squares = [self.state[param]["square_avg"] for param in params]
        lr, decay = group["lr"], group["weight_decay"]
        if decay and group["decoupled_decay"]:
            torch._foreach_mul_(params, 1 - lr * decay)
        elif decay:
            grads = torch._foreach_add(grads, params, alpha=decay)
        torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1 - group["alpha"])
        roots = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(roots)
        steps = torch._foreach_div(grads, roots)
        torch._foreach_mul_(steps, lr)
        if group["momentum"]:
            buffers = [self.state[param]["momentum_buffer"] for param in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, steps)
            steps = buffers
        torch._foreach_sub_(params, steps)
