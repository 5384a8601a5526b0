"""An exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.optim.shards import local


class Ema:
    """average <- d * average + (1 - d) * weights after every optimizer step, as timm's ModelEmaV3 computes it.

    Parameters and running statistics are averaged, counters are copied. Averages of half-precision weights are kept in float32, where
    a step of 1e-4 is not lost. Evaluate and save inside `with ema.applied(model):`, where the model itself has the averages, so that
    whatever is compiled, sharded or replicated stays what it is.

    Args:
        model: whose weights are averaged. A GPU's are averaged there.
        decay: d, in the long run; 0.9999 is usual for hundreds of thousands of steps.
        warmup: d grows from 0 as 1 - (1 + n / gamma)^-power over the first steps n.
        after: updates before averaging starts; until then the averages are the weights.
        gamma: see `warmup`.
        power: see `warmup`; 2/3 reaches 0.999 after 30 thousand steps, 3/4 after 10 thousand.
        exclude_buffers: copy running statistics, too.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float = 0.9999,
        warmup: bool = False,
        after: int = 0,
        gamma: float = 1.0,
        power: float = 2 / 3,
        exclude_buffers: bool = False,
    ):
        if not 0 <= decay < 1:
            check.fail("Ema", "decay", "be at least 0 and below 1", decay, "0.9999 is usual; 1 would never follow the weights")
        if after < 0 or not gamma > 0 or not power > 0:
            check.fail("Ema", "after, gamma and power", "be at least 0, positive and positive", (after, gamma, power))
        self.decay, self.warmup, self.after, self.gamma, self.power = decay, warmup, after, gamma, power
        self.exclude_buffers = exclude_buffers
        self.step = 0
        self.averages = {name: _kept(value) for name, value in _entries(model).items()}

    def decay_at(self, step: int) -> float:
        """d of the update number `step`, counted from 1."""
        step = max(0, step - self.after - 1)
        if step == 0:
            return 0.0
        return min(self.decay, 1 - (1 + step / self.gamma) ** -self.power) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module, optimizer: Any = None) -> None:
        """Take in the weights after an optimizer step. Given SAM as `optimizer`, refuses weights that it has perturbed."""
        if getattr(optimizer, "_perturbed", None) is not None:
            check.fail("Ema", "weights", "be restored", "perturbed ones", "update after the optimizer's second step", RuntimeError)
        self.step += 1
        decay = self.decay_at(self.step)
        averaged: dict[tuple, tuple[list[Tensor], list[Tensor]]] = {}
        parameters = {name for name, _ in model.named_parameters()}
        for name, value in self._matched(model).items():
            average, value = local([self.averages[name], value])
            if decay == 0 or not average.is_floating_point() or (self.exclude_buffers and name not in parameters):
                average.copy_(value)
            else:
                averages, values = averaged.setdefault((average.device, average.dtype), ([], []))
                averages.append(average)
                values.append(value.to(average.device, average.dtype))
        for averages, values in averaged.values():
            torch._foreach_lerp_(averages, values, 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averages; afterwards its own weights again, to the bit."""
        entries = self._matched(model)
        with torch.no_grad():
            backups = {name: value.detach().clone() for name, value in entries.items()}
        try:
            with torch.no_grad():
                for name, value in entries.items():
                    value.copy_(self.averages[name])
            yield
        finally:
            with torch.no_grad():
                for name, value in entries.items():
                    value.copy_(backups[name])

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "averages": dict(self.averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._check_names(state["averages"], "the state")
        for name, average in self.averages.items():
            if average.shape != state["averages"][name].shape:
                check.fail("Ema", name, f"have shape {list(average.shape)}", list(state["averages"][name].shape), "is it the state of this model?")
            average.copy_(state["averages"][name])
        self.step = state["step"]

    def _matched(self, model: nn.Module) -> dict[str, Tensor]:
        entries = _entries(model)
        self._check_names(entries, "the model")
        return entries

    def _check_names(self, entries: dict[str, Tensor], whose: str) -> None:
        if entries.keys() != self.averages.keys():
            odd = sorted(entries.keys() ^ self.averages.keys())
            hint = "pass the module that Ema was made with, wrapped alike"
            check.fail("Ema", whose, f"have the {len(self.averages)} entries that are averaged", f"{len(entries)}, {odd[0]} among the others", hint)


def _entries(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once."""
    persistent = model.state_dict(keep_vars=True).keys()
    return {name: value for named in (model.named_parameters(), model.named_buffers()) for name, value in named if name in persistent}


def _kept(value: Tensor) -> Tensor:
    half = value.dtype in (torch.float16, torch.bfloat16)
    return value.detach().to(torch.float32 if half else value.dtype, copy=True)
