"""What variants of SAM keep beside the weights: the gradients of pass one until pass two is over, or a vector from step to step."""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.optim import vectors
from vtkernels.optim.sam import SAM, Perturbed


class MixingSAM(SAM):
    """SAM whose base step sees a mixture of both passes' gradients. It costs one copy of the gradients."""

    def __init__(self, *args: Any, sync: str = "global", **options: Any):
        if sync != "global":
            hint = "processes that mix in gradients of their own would drift apart"
            check.fail(type(self).__name__, "sync", "be global", repr(sync), hint)
        super().__init__(*args, sync=sync, **options)

    def _reset(self) -> None:
        super()._reset()
        self._first: dict[Tensor, Tensor] = {}
        self._climbed: list[Tensor] = []

    def _climb(self, target: Perturbed, grads: list[Tensor]) -> Tensor:
        if not self._mixes:
            return super()._climb(target, grads)
        for param, grad in zip(target.params, grads, strict=True):
            kept = self._first.get(param)
            if kept is None or kept.dtype != grad.dtype or kept.device != grad.device:
                self._first[param] = torch.empty_like(grad)
        vectors.copy_([self._first[param] for param in target.params], grads)
        self._climbed = target.params
        return super()._climb(target, grads)

    def _before_base_step(self) -> None:
        wanted = self._mixes and self.two_passes_wanted
        params = [param for param in self._climbed if param.grad is not None] if wanted else []
        if params:
            self._mix(params, [self._first[param] for param in params], [param.grad for param in params])

    @property
    def _mixes(self) -> bool:
        return True

    def _mix(self, params: list[Tensor], first: list[Tensor], second: list[Tensor]) -> None:
        """Write into `second` what the base step shall see; `first` may be overwritten."""
        raise NotImplementedError


class RememberingSAM(SAM):
    """SAM with one vector that lives from step to step. `state_dict` has it under `memory_name`, beside the base optimizer's own state."""

    memory_name = ""
    _copied = (*SAM._copied, "_memory")

    def __init__(self, *args: Any, **options: Any):
        self._memory: dict[Tensor, Tensor] = {}
        super().__init__(*args, **options)

    def _remembered(self, params: list[Tensor]) -> list[Tensor]:
        """The vector, zeros at first."""
        for param in params:
            if param not in self._memory:
                self._memory[param] = torch.zeros_like(param, requires_grad=False)
        return [self._memory[param] for param in params]

    def state_dict(self) -> dict[str, Any]:
        # not in the base optimizer's state: most set theirs up only where a parameter has none of any name
        vectors_held = {i: self._memory[param] for i, param in enumerate(self._all_params()) if param in self._memory}
        return {**super().state_dict(), self.memory_name: vectors_held}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        params = self._all_params()
        self._memory = {}
        with torch.no_grad():
            for i, vector in state_dict.get(self.memory_name, {}).items():
                self._memory[params[i]] = torch.zeros_like(params[i], requires_grad=False).copy_(vector)

    def _all_params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]
