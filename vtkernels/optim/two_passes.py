"""What the two passes of a step do to a model besides gradients: running statistics, random numbers, and the gradients' exchange."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels._core import check

BATCHNORM = ("first", "second", "both")
SYNC = ("local", "global")


class TwoPasses:
    """Told by SAM which pass is on, it looks after the model's side of it.

    Args:
        model: whose training forwards are watched, by a forward pre-hook.
        batchnorm: the pass that updates running statistics: first, second or both.
        same_rng: the i-th forward of pass two draws the random numbers of the i-th of pass one.
        sync: local: gradients of pass one stay on their process (DistributedDataParallel only).
    """

    def __init__(self, model: nn.Module, batchnorm: str = "first", same_rng: bool = False, sync: str = "local"):
        self.batchnorm, self.same_rng = batchnorm, same_rng
        self._model = weakref.ref(model)
        self._normalised: list[nn.Module] = []
        self._saved: list[Tensor] = []
        self._second = False
        self._began = False
        # those of pass one's forwards, then the one pass two leaves behind
        self._rng: list[Any] = []
        self._rng_after: Any = None
        self._replayed = 0
        # a compiled module holds the one it was made from
        inner = getattr(model, "_orig_mod", model)
        parallel = inner if sync == "local" and isinstance(inner, nn.parallel.DistributedDataParallel) else None
        # SAM closes this when it dies, which a model that holds SAM must not prevent
        self._parallel_ref = weakref.ref(parallel) if parallel is not None else lambda: None
        if parallel is not None and parallel.static_graph:
            check.fail("SAM", "sync", "be global with static_graph=True", "'local'", "torch cannot leave out the exchange of a static graph's gradients")
        self._silenced = False
        self._agreement: tuple[Tensor, Any] | None = None
        self.two_passes_wanted = True
        self._handle = model.register_forward_pre_hook(_Watch(self))

    @property
    def _parallel(self) -> nn.parallel.DistributedDataParallel | None:
        return self._parallel_ref()

    @property
    def needs_gradients(self) -> bool:
        """Gradients must be zeroed between the passes, not dropped.

        DistributedDataParallel remembers a parameter used in a backward without exchange, and in the next exchange asks for its gradient.
        """
        return self._parallel is not None and self._parallel.find_unused_parameters

    def close(self) -> None:
        """Leave the model as it was found."""
        self._exchange_again()
        self._handle.remove()

    def before_forward(self, model: nn.Module) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        if self._second:
            if self._replayed < len(self._rng):
                _set_rng(self._rng[self._replayed])
                self._replayed += 1
            return
        if not self.two_passes_wanted:
            return
        if self._parallel is not None and self._parallel.require_backward_grad_sync:
            self._parallel.require_backward_grad_sync = False
            self._silenced = True
        if not self._began and self.batchnorm == "second":
            self._save_statistics()
        if self.same_rng:
            self._rng.append(_get_rng())
        self._began = True

    def enter_second(self) -> None:
        """Pass one is over, the parameters are perturbed."""
        self._exchange_again()
        if self.batchnorm == "second" and self._began:
            self._load_statistics()
        elif self.batchnorm == "first":
            self._save_statistics()
        self._second, self._replayed = True, 0
        self._rng_after = _get_rng() if self.same_rng else None

    def leave_second(self) -> None:
        """The parameters are back, or the step was given up."""
        if self._second and self.batchnorm == "first":
            self._load_statistics()
        if self._second and self._replayed:
            _set_rng(self._rng_after)
        self._second = False
        self.forget()

    def forget(self) -> None:
        """Pass one of another step may begin."""
        self._exchange_again()
        self._began = False
        self._rng.clear()

    def agree(self, found_inf: Tensor) -> None:
        """Begin to tell all processes that one of them found a gradient of pass one that is not finite: then none may step."""
        if self._parallel is None or torch.distributed.get_world_size(self._parallel.process_group) == 1:
            return
        flag = found_inf.clone()
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._parallel.process_group, async_op=True)
        self._agreement = (flag, work)

    def agreed(self, found_inf: Tensor) -> Tensor:
        if self._agreement is None:
            return found_inf
        (flag, work), self._agreement = self._agreement, None
        work.wait()
        return flag

    def _exchange_again(self) -> None:
        if self._silenced and self._parallel is not None:
            self._parallel.require_backward_grad_sync = True
        self._silenced = False

    def _statistics(self) -> list[Tensor]:
        names = ("running_mean", "running_var", "num_batches_tracked")
        found = (getattr(module, name, None) for module in self._normalised for name in names)
        return [tensor for tensor in found if tensor is not None]

    def _save_statistics(self) -> None:
        # layers may come, go and be converted between steps
        model = self._model()
        self._normalised = [] if model is None else [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
        tensors = self._statistics()
        if [(t.shape, t.dtype, t.device) for t in self._saved] != [(t.shape, t.dtype, t.device) for t in tensors]:
            self._saved = [torch.empty_like(tensor) for tensor in tensors]
        _copy(self._saved, tensors)

    def _load_statistics(self) -> None:
        _copy(self._statistics(), self._saved)


class _Watch:
    """The hook a model carries. It keeps no optimizer alive, and in a copy of the model it does nothing."""

    def __init__(self, passes: TwoPasses | None = None):
        self._passes = weakref.ref(passes) if passes is not None else lambda: None

    def __call__(self, model: nn.Module, args: Any) -> None:
        passes = self._passes()
        if passes is not None:
            passes.before_forward(model)

    def __reduce__(self) -> tuple:
        return _Watch, ()


def check_policy(model: Any, batchnorm: str | None, same_rng: bool, sync: str) -> None:
    """A wish that needs the model must come with it."""
    if sync not in SYNC:
        check.fail("SAM", "sync", f"be one of {', '.join(SYNC)}", repr(sync))
    if batchnorm is not None and batchnorm not in BATCHNORM:
        check.fail("SAM", "batchnorm", f"be one of {', '.join(BATCHNORM)}", repr(batchnorm))
    if model is not None and not isinstance(model, nn.Module):
        check.fail("SAM", "model", "be a torch.nn.Module", type(model).__name__, "", TypeError)
    if model is not None and any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        hint = "its flat shards hide that a norm goes over all processes"
        check.fail("SAM", "model", "be sharded with torch.distributed.fsdp.fully_shard", "FullyShardedDataParallel", hint, TypeError)
    if model is None and (batchnorm is not None or same_rng):
        wish = "batchnorm" if batchnorm is not None else "same_rng"
        check.fail("SAM", "model", f"be given with {wish}", None, "pass model=model, the module whose forward is called in both passes")


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)


def _get_rng() -> tuple[Tensor, dict[int, Tensor]]:
    """Of the CPU and of the current GPU, if one is in use."""
    gpu = {}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        gpu = {torch.cuda.current_device(): torch.cuda.get_rng_state()}
    return torch.get_rng_state(), gpu


def _set_rng(states: tuple[Tensor, dict[int, Tensor]]) -> None:
    torch.set_rng_state(states[0])
    for device, state in states[1].items():
        torch.cuda.set_rng_state(state, device)
