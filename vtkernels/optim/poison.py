"""How a gradient of pass one that is not finite is made known to whoever looks at those of pass two."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtkernels.optim.shards import local


class Poison:
    """Makes one element of the second gradient infinite if the first was not finite.

    Any scaler, and anybody else who looks at the gradients, then sees that the step is lost; on the device, without waiting.
    """

    def __init__(self) -> None:
        self._handles: dict[Tensor, Any] = {}
        self._found_inf: Tensor | None = None

    def watch(self, param: Tensor) -> None:
        """From now on, the second gradient of this parameter too."""
        if param not in self._handles and param.requires_grad and param.is_leaf:
            self._handles[param] = param.register_post_accumulate_grad_hook(_hook(weakref.ref(self)))

    def arm(self, found_inf: Tensor) -> None:
        """For the first of the watched parameters to get a gradient."""
        self._found_inf = found_inf

    def disarm(self) -> None:
        self._found_inf = None

    def remove(self) -> None:
        self.disarm()
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    @property
    def armed(self) -> bool:
        return self._found_inf is not None

    @torch.no_grad()
    def spoil(self, param: Tensor) -> None:
        (grad,) = local([param.grad])
        if grad.numel() == 0 or grad.layout != torch.strided:
            return
        poison = torch.where(self._found_inf > 0, float("inf"), 0.0).to(grad.dtype)
        grad.as_strided((1,), (1,)).add_(poison)
        self._found_inf = None


def _hook(poison: weakref.ref) -> Callable[[Tensor], None]:
    def hook(param: Tensor) -> None:
        found = poison()
        if found is not None and found.armed:
            found.spoil(param)

    return hook
