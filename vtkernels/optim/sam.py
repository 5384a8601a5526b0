"""Sharpness-aware minimisation around any optimizer, with the signature of davda54/sam."""

import contextlib
import numbers
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vtkernels._core import check
from vtkernels.ops.sam import sam_restore_
from vtkernels.ops.sam.unchecked import sam_perturb_
from vtkernels.optim import shards
from vtkernels.optim.base_step import Piece, Scaling, base_step
from vtkernels.optim.interrupts import uninterrupted
from vtkernels.optim.poison import Poison
from vtkernels.optim.two_passes import TwoPasses, check_policy

_OWN = ("rho", "adaptive", "eta")


class Perturbed(NamedTuple):
    """The parameters that had a gradient in pass one, what lies of them on this process, and copies of that."""

    params: list[Tensor]
    local: list[Tensor]
    backups: list[Tensor]

    def versions(self) -> list[int]:
        """Counts of what was written to each so far."""
        return [param._version for param in self.local]

    def put_back(self, members: Iterable[int], backend: str) -> None:
        """Those of the parameters, to the bit."""
        members = [i for i in members if _like(self.backups[i], self.local[i])]
        if members:
            sam_restore_([self.local[i] for i in members], [self.backups[i] for i in members], backend=backend)


class SAM(torch.optim.Optimizer):
    """Minimise the worst loss within `rho` of the weights: two passes a step, the second one from perturbed weights.

        sam = SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=1e-3)
        loss(model(x), y).backward()
        with sam.perturbed():
            loss(model(x), y).backward()
        sam.step()

    `first_step`, `second_step` and `step(closure)` work as in davda54/sam. The parameter groups and the state are the base
    optimizer's own objects. Restoring is exact and in place, and happens on every way out of the second pass.

    Args:
        params: parameters, or groups of them, which may set rho, adaptive and eta for themselves.
        base_optimizer: the class of the optimizer that makes the step; `kwargs` go to it.
        rho: radius of the neighbourhood.
        adaptive: ASAM: the neighbourhood is stretched by |w| + eta along each axis.
        eta: see adaptive; 0 is davda54's, 0.01 that of ASAM's authors.
        perturb_eps: added to the norm of the gradient.
        every: two passes in each `every`-th step, plain steps otherwise.
        sync: with DistributedDataParallel as `model`: perturb with the `local` gradient of each process, without exchanging
            those of pass one, or with the `global` one. Sharded parameters (FSDP2) always have the global one.
        model: the module called in both passes, needed for what concerns forwards: batchnorm, same_rng, sync.
        batchnorm: the pass that updates running statistics: first (the default, with a model), second or both.
        same_rng: both passes draw the same dropout and drop path masks.
        backend: of the ops: auto, cuda, triton, cpu or reference.
        amp_scaling: a GradScaler hands over its scale, and what is lost is skipped on the device. False: the scaler unscales by itself, waits to
            see whether a gradient is finite, and leaves out the step if not; Lightning clips under mixed precision only so.
        kwargs: for the base optimizer: lr, weight_decay, ...
    """

    # what a copy has of it
    _copied: tuple[str, ...] = ("base_optimizer", "defaults", "perturb_eps", "every", "backend", "_enabled", "_step_supports_amp_scaling")

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: Callable[..., torch.optim.Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        *,
        eta: float = 0.0,
        perturb_eps: float = 1e-12,
        every: int = 1,
        sync: str = "local",
        model: nn.Module | None = None,
        batchnorm: str | None = None,
        same_rng: bool = False,
        backend: str = "auto",
        amp_scaling: bool = True,
        **kwargs: Any,
    ):
        if not callable(base_optimizer):
            got = f"an instance of {type(base_optimizer).__name__}"
            check.fail("SAM", "base_optimizer", "be a class such as torch.optim.AdamW", got, "pass the class, and its options beside it", TypeError)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            check.fail("SAM", "every", "be an int of at least 1", repr(every), "1 makes each step one of two passes")
        _check_radius(perturb_eps, "perturb_eps")
        check_policy(model, batchnorm, same_rng, sync)
        groups = _as_groups(params)
        self.base_optimizer = None
        self._enabled, self._step_supports_amp_scaling = True, amp_scaling
        self.perturb_eps, self.every, self.backend = float(perturb_eps), every, backend
        super().__init__(groups, {"rho": rho, "adaptive": adaptive, "eta": eta})
        self.base_optimizer = base_optimizer(self.param_groups, **_fused_on_gpu(base_optimizer, groups, kwargs))
        self.defaults = {**self.base_optimizer.defaults, **self.defaults}
        # the norm of the gradients of pass one, on the device, and 1 there if one was not finite: the step is then skipped
        self.norm: Tensor | None = None
        self.first_found_inf: Tensor | None = None
        self._passes = TwoPasses(model, batchnorm or "first", same_rng, sync) if model is not None else None
        self._reset()
        self._plan_passes()
        if self._passes is not None:
            # a model that outlives its optimizer is left as it was found
            weakref.finalize(self, self._passes.close).atexit = False

    def _reset(self) -> None:
        self._backups: dict[Tensor, Tensor] = {}
        self._perturbed: Perturbed | None = None
        # of the perturbed parameters, as the climb left them
        self._versions: list[int] = []
        # the gradients are those of the base step: pass two is over, or none was wanted
        self._ready = False
        # whether first_found_inf speaks of the step under way
        self._first_counts = False
        self._poison = Poison()
        weakref.finalize(self, self._poison.remove).atexit = False

    # ---- the two passes ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> bool:
        """After the backward of pass one: save the parameters and climb. False where `every` wants a plain step: go on to it."""
        self._undo()
        self._ready = self._first_counts = False
        # cast weights of pass one are kept while the outermost autocast lasts
        torch.clear_autocast_cache()
        if not self.two_passes_wanted:
            self._before_base_step()
            self._ready = True
            return False
        params = [param for _, param in self._climbing()]
        if not params:
            raise RuntimeError(
                "SAM: first_step found no parameter with a gradient; call loss.backward() first, and zero the gradients after second_step rather than before"
            )
        target = self._target(params)
        before = target.versions()
        try:
            with uninterrupted():
                self.norm = self._climb(target, [param.grad for param in params])
                self._perturbed, self._versions = target, target.versions()
            self._first_counts = True
            self._poison.arm(self.first_found_inf)
            if self._passes is not None:
                self._passes.agree(self.first_found_inf)
                self._passes.enter_second()
            if zero_grad:
                self.zero_grad(set_to_none=self._passes is None or not self._passes.needs_gradients)
        except BaseException:
            if self._perturbed is None:
                # some may have climbed: the backups of those, and of no others, are filled
                target.put_back((i for i, (old, new) in enumerate(zip(before, target.versions(), strict=True)) if old != new), self.backend)
            self.give_up()
            raise
        return True

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """After the backward of pass two: back to the saved parameters, and the base optimizer's step from there."""
        if self._perturbed is None and not self._ready:
            raise RuntimeError("SAM: second_step must follow first_step; call loss.backward() and first_step() before the second pass")
        try:
            if self._perturbed is not None:
                self._before_base_step()
            pieces, scaling = self._pieces(), self._scaling()
            with uninterrupted():
                base_step(self.base_optimizer, pieces, scaling, self.backend)
                self._perturbed = None
        except BaseException:
            self.give_up()
            raise
        self._end_second_pass()
        self._finish()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The whole step after the backward of pass one, `closure` being pass two; without it, what is left of a step begun.

        Returns:
            What the closure returned: the loss at the perturbed weights. None in a plain step, which does not call it.
        """
        if closure is None:
            return self._rest_of_step()
        if getattr(self, "found_inf", None) is not None:
            raise RuntimeError(
                "SAM: GradScaler.step cannot take a closure, it would look at the gradients of pass one; "
                "use `with sam.perturbed(): scaler.scale(loss()).backward()`, then scaler.step(sam)"
            )
        if self._ready and self.two_passes_wanted:
            self.give_up()
            raise RuntimeError(
                "SAM: step() must come without a closure after `with sam.perturbed()`: that was pass two, and a closure would begin a new step; "
                "that step is forgotten now: zero the gradients and begin again with pass one"
            )
        loss = None
        if not self._ready and self.first_step(zero_grad=True):
            try:
                with torch.enable_grad():
                    loss = closure()
            except BaseException:
                self.give_up()
                raise
        self.second_step()
        return loss

    @contextlib.contextmanager
    def perturbed(self) -> Iterator[bool]:
        """Pass two in a block: perturbed and without gradients inside, restored to the bit at its end, whatever happens in it.

        After it `sam.step()` (or `scaler.step(sam)`) is the base step. Where `every` wants no second pass it yields False:
        the block may skip its work, and what it does to gradients is forgotten.
        """
        wanted = self.first_step(zero_grad=True)
        kept = [] if wanted else [(param, param.grad) for group in self.param_groups for param in group["params"]]
        for param, _ in kept:
            # a body that runs its pass all the same must not add to them
            param.grad = None
        try:
            yield wanted
        except BaseException:
            self.give_up()
            raise
        finally:
            for param, grad in kept:
                param.grad = grad
        self.restore()
        if wanted:
            with torch.no_grad():
                self._before_base_step()
        self._ready = True

    @torch.no_grad()
    def restore(self) -> None:
        """Back to the parameters before `first_step`, to the bit; nothing if they are there already."""
        if self._perturbed is None:
            return
        target = self._perturbed
        if not all(map(_like, target.backups, target.local)):
            warnings.warn("SAM: parameters got another shape, dtype or device between the passes; they are left as they are", stacklevel=2)
        target.put_back(range(len(target.local)), self.backend)
        # not before: whoever is interrupted above can call again
        self._perturbed = None
        self._end_second_pass()

    @property
    def two_passes_wanted(self) -> bool:
        """Whether the step under way has a second pass: each `every`-th has, none while SAM is not `enabled`."""
        return self.enabled and self._turn

    @property
    def _turn(self) -> bool:
        return self.every == 1 or self.param_groups[0].get("sam_step", 0) % self.every == 0

    @property
    def enabled(self) -> bool:
        """False: all steps are the base optimizer's, `step()` too, and forwards and backwards are left alone, as in a warm-up or a fine-tuning.

        Set it before a step's first forward.
        """
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self.give_up()
        self._enabled = bool(enabled)
        self._plan_passes()

    def close(self) -> None:
        """Restore, and take all hooks off the model and its parameters."""
        self.restore()
        self._poison.remove()
        if self._passes is not None:
            self._passes.close()

    # ---- what variants change ------------------------------------------------------------------------------------------

    def _neighbourhood(self, group: dict[str, Any], param: Tensor) -> tuple[float, bool, float]:
        """The rho, adaptive and eta of a parameter."""
        return group["rho"], group["adaptive"], group["eta"]

    def _before_base_step(self) -> None:
        """The gradients of the last pass stand in `.grad`: other ones may be written there, before anybody unscales or clips them."""

    # ---- parts of a step -----------------------------------------------------------------------------------------------

    def _rest_of_step(self) -> None:
        if not self.enabled and not self._ready:
            self.first_step()
        if self._perturbed is None and not self._ready:
            raise RuntimeError(
                "SAM: step() needs a closure that does the second forward and backward, got none; "
                "pass one, or run the second pass before step(): `with sam.perturbed(): loss().backward()`"
            )
        self.second_step()

    def _target(self, params: list[Tensor]) -> Perturbed:
        held = [self._backups.get(param) for param in params]
        local = shards.local(params)
        for i, (param, backup) in enumerate(zip(local, held, strict=True)):
            if backup is None or not _like(backup, param) or backup.stride() != param.stride():
                if param.device != local[0].device:
                    check.fail("SAM", "params", f"be on one device ({local[0].device})", param.device, "make one SAM for each device")
                held[i] = self._backups[params[i]] = torch.empty_like(param, memory_format=torch.preserve_format)
                self._poison.watch(params[i])
        return Perturbed(params, local, held)

    def _climbing(self) -> list[tuple[dict[str, Any], Tensor]]:
        """The parameters that pass one has reached, with their groups. One frozen since may have an old gradient."""
        return [(group, param) for group in self.param_groups for param in group["params"] if param.grad is not None and param.requires_grad]

    def _climb(self, target: Perturbed, grads: list[Tensor]) -> Tensor:
        rho, adaptive, eta = map(list, zip(*(self._neighbourhood(group, param) for group, param in self._climbing()), strict=True))
        # of any real type, as numpy's
        rho, eta = list(map(float, rho)), list(map(float, eta))
        if self.first_found_inf is None or self.first_found_inf.device != target.local[0].device:
            self.first_found_inf = torch.zeros((), dtype=torch.float32, device=target.local[0].device)
        self.first_found_inf.zero_()
        common = {"eps": self.perturb_eps, "found_inf": self.first_found_inf, "backend": self.backend}
        etas = {e for e, wanted in zip(eta, adaptive, strict=True) if wanted} or {0.0}
        # the very list, unless a parameter is sharded
        if target.local is target.params and len(etas) == 1:
            return sam_perturb_(target.local, grads, target.backups, rho=rho, adaptive=adaptive, eta=etas.pop(), **common)
        # parts of one norm: over processes, or where the op's one eta does not do
        total = shards.square_sum(target.params, grads, adaptive, eta, self.backend)
        grads = shards.local(grads)
        for one in sorted(etas):
            members = [i for i in range(len(grads)) if (eta[i] if adaptive[i] else min(etas)) == one]
            params, along, backups, radii, stretched = ([values[i] for i in members] for values in (target.local, grads, target.backups, rho, adaptive))
            norm = sam_perturb_(params, along, backups, rho=radii, adaptive=stretched, eta=one, square_sum=total, **common)
        return norm

    def _pieces(self) -> list[Piece]:
        """The parameters with a gradient for the base step; those perturbed without one go back now."""
        if self._perturbed is not None and not all(map(_like, self._perturbed.backups, self._perturbed.local)):
            raise RuntimeError(
                "SAM: parameters must keep their shape, dtype and device from first_step to second_step, got others; resize or move the model between steps"
            )
        backups = dict(zip(self._perturbed.params, self._perturbed.backups, strict=True)) if self._perturbed is not None else {}
        pieces = []
        for group in self.param_groups:
            perturbed, plain = Piece(group, [], [], []), Piece(group, [], [], [])
            for param in group["params"]:
                if param.grad is None:
                    continue
                backup = backups.pop(param, None)
                piece = plain if backup is None else perturbed
                piece.params.append(param)
                piece.grads.append(param.grad)
                if backup is not None:
                    piece.backups.append(backup)
            pieces += [piece for piece in (perturbed, plain) if piece.params]
        if backups:
            sam_restore_(shards.local(list(backups)), list(backups.values()), backend=self.backend)
        return pieces

    def _scaling(self) -> Scaling:
        """What GradScaler says of pass two, and what pass one found: either skips the step."""
        device = next(param.device for group in self.param_groups for param in group["params"])
        told = [getattr(self, name, None) for name in ("grad_scale", "found_inf")]
        grad_scale, found_inf = (value.to(device, non_blocking=True) if isinstance(value, Tensor) else None for value in told)
        if self._first_counts:
            first = self.first_found_inf if self._passes is None else self._passes.agreed(self.first_found_inf)
            found_inf = first if found_inf is None else torch.maximum(first, found_inf)
        return Scaling(grad_scale, found_inf)

    def _undo(self) -> None:
        """A step that nobody ended: back to the parameters before it, but for those that somebody has written to since, as by loading."""
        if self._perturbed is None:
            return
        written = {i for i, (old, new) in enumerate(zip(self._versions, self._perturbed.versions(), strict=True)) if old != new}
        if not written:
            return self.restore()
        warnings.warn("SAM: a step was left between its passes, and parameters were written since: these are left as they are", stacklevel=3)
        self._perturbed.put_back((i for i in range(len(self._versions)) if i not in written), self.backend)
        self._perturbed = None
        self._end_second_pass()

    def _end_second_pass(self) -> None:
        self._poison.disarm()
        torch.clear_autocast_cache()
        if self._passes is not None:
            self._passes.leave_second()

    def _finish(self) -> None:
        self._ready = self._first_counts = False
        self._opt_called = True
        if self.every > 1:
            for group in self.param_groups:
                group["sam_step"] = group.get("sam_step", 0) + 1
        self._plan_passes()

    def give_up(self) -> None:
        """The step under way is over, as after an error: no parameter stays perturbed, and the next step begins with pass one."""
        self.restore()
        # a step that was interrupted right after it was made has nothing to restore
        self._end_second_pass()
        self._ready = self._first_counts = False
        self._plan_passes()

    def _plan_passes(self) -> None:
        if self._passes is not None:
            self._passes.forget()
            self._passes.two_passes_wanted = self.two_passes_wanted

    # ---- one optimizer with the base optimizer -------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._groups if self.base_optimizer is None else self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if self.base_optimizer is None:
            self._groups = groups
        else:
            self.base_optimizer.param_groups = groups

    @property
    def state(self) -> dict[Tensor, Any]:
        return self._state if self.base_optimizer is None else self.base_optimizer.state

    @state.setter
    def state(self, state: dict[Tensor, Any]) -> None:
        if self.base_optimizer is None:
            self._state = state
        else:
            self.base_optimizer.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = {name: self.defaults[name] for name in _OWN} | param_group
        group["params"] = _once(group["params"])
        for name in ("rho", "eta"):
            _check_radius(group[name], name)
        if self.base_optimizer is None:
            super().add_param_group(group)
        else:
            self.base_optimizer.add_param_group(group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's, never a backup."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, a plain base optimizer's state, or a davda54/sam checkpoint."""
        self._undo()
        # davda54's holds copies of the weights here
        state = {key: {name: value for name, value in held.items() if name != "old_p"} for key, held in state_dict["state"].items()}
        groups = [dict(group) for group in state_dict["param_groups"]]
        for group, own in zip(groups, self.param_groups, strict=False):
            for name in _OWN:
                group.setdefault(name, own[name])
            if "fused" in group and group["fused"] is None:
                # which kernel steps is not a matter of the checkpoint
                group["fused"] = own.get("fused")
        self.base_optimizer.load_state_dict({**state_dict, "state": {key: held for key, held in state.items() if held}, "param_groups": groups})
        self._ready = self._first_counts = False
        self._plan_passes()

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the hyperparameters and the state, and watches no model."""
        return {name: self.__dict__[name] for name in self._copied}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.norm = self.first_found_inf = self._passes = None
        self._reset()


def _like(tensor: Tensor, param: Tensor) -> bool:
    return tensor.shape == param.shape and tensor.dtype == param.dtype and tensor.device == param.device


def _as_groups(params: Iterable[Any]) -> list[dict[str, Any]]:
    if isinstance(params, Tensor):
        check.fail("SAM", "params", "be an iterable of tensors or of groups", "a tensor", "try [params]", TypeError)
    groups = list(params)
    if groups and not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    # the caller's dictionaries stay as they are
    groups = [{**group, "params": [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])} for group in groups]
    if not any(group["params"] for group in groups):
        check.fail("SAM", "params", "hold at least one parameter", "an empty list", "is the model frozen, or was a generator used up before?")
    return groups


def _once(params: Any) -> Any:
    """Tied weights may be listed under each of their names: climbing twice would lose the way back."""
    if isinstance(params, Tensor):
        return params
    params = list(params)
    each: dict[int, Any] = {}
    for entry in params:
        each.setdefault(id(entry[1] if isinstance(entry, tuple) else entry), entry)
    if len(each) == len(params):
        return params
    warnings.warn("SAM: a parameter is listed twice in a group (tied weights?); it is perturbed and stepped once", stacklevel=4)
    return list(each.values())


def _fused_on_gpu(base_optimizer: Any, groups: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
    """Adam counts its steps on the device only if asked to; without that nothing on the device could skip one."""
    asked = any(name in options for name in ("foreach", "fused", "capturable"))
    if base_optimizer not in (torch.optim.Adam, torch.optim.AdamW) or asked:
        return options
    tensors = (param[1] if isinstance(param, tuple) else param for group in groups for param in group["params"])
    return {**options, "fused": True} if all(tensor.is_cuda for tensor in tensors) else options


def _check_radius(value: Any, name: str) -> None:
    if not (isinstance(value, numbers.Real) and 0.0 <= value < float("inf")):
        hint = "SAM's paper uses 0.05, ViTs are often trained with 0.1 to 0.6" if name == "rho" else ""
        check.fail("SAM", name, "be at least 0 and finite", value, hint)
