"""One op, several interchangeable backends: how a call finds the one that runs it."""

import contextlib
import importlib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad

from vtkernels._core import env

log = logging.getLogger("vtkernels")
LIBRARY = torch.library.Library("vtkernels", "DEF")
OPS: dict[str, "Op"] = {}


@dataclass(frozen=True)
class Backend:
    """A way to run an op. `why_not(phase, call)` reads metadata only: None, or a sentence saying why it cannot run the call.

    A backend may leave phases out. `why_not` says so of them, unless it has more to say against the call; asked for explicitly, such a
    backend leaves them to the others, in the order of `auto`.
    """

    name: str
    why_not: Callable[[str, Any], str | None]
    phases: dict[str, Callable[..., Any]]


class Op:
    """An op's backends, in order of preference, each as "module" or "module:attribute" (default BACKEND), imported when first asked.

    An op that is not `differentiable` has a forward phase only; `mutates` names the arguments such an op writes to.
    """

    def __init__(self, name: str, backends: dict[str, str], *, differentiable: bool = True, mutates: tuple[str, ...] = ()):
        self.name = name
        self.mutates = mutates
        self.phases = ("forward", "backward") if differentiable else ("forward",)
        self._modules = backends
        self._loaded: dict[str, Backend] = {}
        self._told: set[str] = set()
        self._choice: Callable[[str, Any], str | None] = lambda phase, call: None
        OPS[name] = self

    def explains(self, public: Callable[..., Any], to_call: Callable[..., Any], example: Callable[[torch.device], dict[str, Any]]) -> None:
        """For `explain` and `backends`: the public function, the call its arguments make, and arguments typical of it."""
        self.public, self.to_call, self.example = public, to_call, example

    def prefer(self, choice: Callable[[str, Any], str | None]) -> None:
        """`choice(phase, call)` names the backend that `auto` tries first; None leaves the order as it is. It reads metadata only."""
        self._choice = choice

    def arguments(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """All arguments of the public function by name, for a call that gives some."""
        bound = inspect.signature(self.public).bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    @property
    def package(self) -> str:
        """The folder of the op, which may hold several that belong together."""
        return self._modules["reference"].rpartition(".")[0]

    @property
    def backend_names(self) -> tuple[str, ...]:
        return tuple(self._modules)

    def default_backend(self) -> str:
        """Of VTKERNELS_BACKEND; one that only other ops have leaves this one its choice, as models call them all."""
        asked = env.default_backend()
        elsewhere = asked != "auto" and asked not in self._modules and any(asked in op.backend_names for op in OPS.values())
        return "auto" if elsewhere else asked

    def check_name(self, backend: str) -> None:
        if backend != "auto" and backend not in self._modules:
            names, origin = ", ".join(self._modules), " from VTKERNELS_BACKEND" if backend == env.default_backend() else ""
            raise ValueError(f"{self.name}: backend must be one of auto, {names}, got {backend!r}{origin}; vtkernels.backends() lists what runs here")

    def backend(self, name: str) -> Backend:
        self.check_name(name)
        if name not in self._loaded:
            module, _, attribute = self._modules[name].partition(":")
            self._loaded[name] = getattr(importlib.import_module(module), attribute or "BACKEND")
        return self._loaded[name]

    def reasons(self, phase: str, call: Any) -> dict[str, str | None]:
        """Each backend, in the order `auto` tries them, with None or the sentence that says why it cannot run this call."""
        return {name: self.backend(name).why_not(phase, call) for name in self._order(phase, call)}

    def _order(self, phase: str, call: Any) -> list[str]:
        # the sort is stable: the others keep their places
        preferred = self._choice(phase, call)
        return sorted(self._modules, key=lambda name: name != preferred) if preferred else list(self._modules)

    def leaves_to_others(self, phase: str, backend: str, call: Any) -> bool:
        """Whether the backend has no kernel for this phase, but runs the rest of the call."""
        found = self.backend(backend)
        rest = [other for other in self.phases if other in found.phases]
        return phase not in found.phases and rest != [] and all(found.why_not(other, call) is None for other in rest)

    def select(self, phase: str, backend: str, call: Any) -> Callable[..., Any]:
        """The launcher for this call. An explicit backend runs or raises; `auto` takes the first that can."""
        if backend == "auto":
            backend = self.default_backend()
        if backend != "auto" and not self.leaves_to_others(phase, backend, call):
            reason = self.backend(backend).why_not(phase, call)
            if reason is not None:
                raise RuntimeError(f"{self.name}: backend {backend!r} was asked for but cannot run this call: {reason}; try backend='auto'")
            return self.backend(backend).phases[phase]
        skipped = []
        for name in self._order(phase, call):
            reason = self.backend(name).why_not(phase, call)
            if reason is None:
                if name == "reference":
                    self._tell_once(skipped)
                return self.backend(name).phases[phase]
            skipped.append(f"{name}: {reason}")
        raise RuntimeError(f"{self.name}: no backend can run this call: " + "; ".join(skipped))

    def _tell_once(self, skipped: list[str]) -> None:
        message = f"{self.name} falls back to its slow reference backend ({'; '.join(skipped)})"
        if message not in self._told:
            self._told.add(message)
            log.warning(message)


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register `vtkernels::<schema>`: one Python kernel for every device, and its shape function for compile and export.

    What autocast casts, the public function has cast: inside the kernel it is off, as a backward may well run under one.
    """
    name = schema.split("(", 1)[0]

    def in_its_dtypes(*args: Any) -> Any:
        if _autocast_anywhere():
            with _without_autocast():
                return kernel(*args)
        return kernel(*args)

    LIBRARY.define(schema)
    LIBRARY.impl(name, in_its_dtypes, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vtkernels::{name}", fake, lib=LIBRARY)


_autocast_anywhere = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
_without_autocast = getattr(torch._C, "_DisableAutocast", contextlib.nullcontext)


def differentiable(name: str, save: Callable[..., None], differentiate: Callable[..., Any]) -> None:
    """Register autograd for `vtkernels::<name>`: `save(ctx, inputs, output)` after the forward, `differentiate(ctx, *grads)`.

    What torch.library.register_autograd does, without its 60 microseconds a call of reading the schema anew: a tenth
    of a small kernel's training step.
    """
    below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
    if below_autograd is None:
        torch.library.register_autograd(f"vtkernels::{name}", differentiate, setup_context=save, lib=LIBRARY)
        return
    op = getattr(torch.ops.vtkernels, name).default
    # a result that counts as a view may not be written to: an activation in place may follow
    below_views = getattr(torch._C, "_AutoDispatchBelowADInplaceOrView", below_autograd)

    def forward(ctx: Any, *args: Any) -> Any:
        with below_views():
            output = op(*args)
        save(ctx, args, output)
        return output

    def transformed(*args: Any) -> Any:
        # the dispatcher brings functorch's transforms here one by one; the wrapper of `Function.apply` would begin with all of them anew
        with enable_single_level_autograd_function():
            return nested(*args)

    def forward_nested(ctx: Any, *args: Any) -> Any:
        # the next transform may want gradients, too, which are off in a forward
        with torch.enable_grad():
            return forward(ctx, *args)

    def function(forward: Callable[..., Any]) -> Callable[..., Any]:
        # the wrapper in Python only serves functorch's transforms
        made = type(name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(differentiate)})
        return super(torch.autograd.Function, made).apply

    apply, nested = function(forward), function(forward_nested)

    def kernel(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, args)
        if torch.is_grad_enabled() and any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args):
            return transformed(*args) if torch._C._are_functorch_transforms_active() else apply(*args)
        with below_autograd():
            return op(*args)

    LIBRARY.impl(name, kernel, "Autograd")


def _refuse_tangents(name: str, args: tuple[Any, ...]) -> None:
    """Silence would be a derivative of zero."""
    if any(isinstance(arg, torch.Tensor) and forward_ad.unpack_dual(arg).tangent is not None for arg in args):
        op = name.removesuffix("_backward")
        raise NotImplementedError(f"{op}: forward-mode differentiation is not implemented; take reverse mode, twice for a product with the Jacobian")


def undispatched(tensors: int, save: Callable[..., None], differentiate: Callable[..., Any]) -> Callable[..., Any]:
    """`call(launch, rest, *tensors)`: the first output of a differentiable op, whose kernel is `launch()`, without the dispatcher.

    The way through it and back, twice in a training step, is a third of a small call's time. Only for calls that nobody watches:
    see `watched`. What is no tensor comes in one piece, `rest`, as autograd looks at each argument.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = args[tensors]()
        save(ctx, args[:tensors] + args[tensors + 1], output)
        return output[0]

    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        return *differentiate(ctx, grad)[:tensors], None, None

    # the wrapper in Python only serves functorch's transforms, which `watched` sees
    apply = super(torch.autograd.Function, type("Undispatched", (torch.autograd.Function,), {"forward": forward, "backward": backward})).apply

    def call(launch: Callable[[], Any], rest: tuple[Any, ...], *given: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            for tensor in given:
                if tensor.requires_grad:
                    return apply(*given, launch, rest)
        return launch()[0]

    return call


_WATCHERS = ("_len_torch_dispatch_stack", "_len_torch_function_stack", "_are_functorch_transforms_active", "_get_tracing_state")
_ASK_WATCHERS = tuple(getattr(torch._C, name, lambda: True) for name in _WATCHERS)
# of a gradient: whether autograd takes many at once (`is_grads_batched`); then no transform is active, and its class is Tensor
of_many = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


def watched(*tensors: torch.Tensor) -> bool:
    """Whether a mode, a transform, a trace or a tensor of another kind wants to see the op itself."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return True
    for ask in _ASK_WATCHERS:
        if ask():
            return True
    for tensor in tensors:
        if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
            return True
        if tensor.layout is not torch.strided or tensor.is_nested:
            return True
    return False


def differentiable_again(name: str, first: int, forward: Callable[..., torch.Tensor]) -> None:
    """Register autograd for the backward op `vtkernels::<name>`: second derivatives, for which plain tensor algebra is differentiated twice.

    The op's arguments are the upstream gradient, what the forward saved, from `first` on the tensors that its results are the gradients of, and
    the rest; `forward(*tensors, *rest)` is the output, as the reference makes it. What was saved follows from the tensors: it has no gradient of its own.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        end = first + (len(output) if isinstance(output, (tuple, list)) else 1)
        ctx.save_for_backward(inputs[0], *inputs[first:end])
        ctx.rest, ctx.places = inputs[end:], (0, *range(first, end))
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, *upstream: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if torch._C._are_functorch_transforms_active():
            op = name.removesuffix("_backward")
            raise NotImplementedError(f"{op}: second derivatives by torch.func are not implemented; use torch.autograd.grad(..., create_graph=True)")
        found: list[torch.Tensor | None] = [None] * len(ctx.needs_input_grad)
        again = torch.is_grad_enabled()
        with torch.enable_grad(), _without_autocast():
            grad, *tensors = sources = [_branch(saved) for saved in ctx.saved_tensors]
            # arguments that are absent, or not numbers to differentiate by, have results too: empty ones
            wanted = [(tensor, up) for tensor, up in zip(tensors, upstream, strict=True) if up is not None and tensor is not None and tensor.requires_grad]
            needed = [(place, source) for place, source in zip(ctx.places, sources, strict=True) if ctx.needs_input_grad[place]]
            if not wanted:
                return tuple(found)
            output = forward(*tensors, *ctx.rest)
            grads = torch.autograd.grad(output, [tensor for tensor, _ in wanted], grad, create_graph=True)
            ups, sources = [up for _, up in wanted], [source for _, source in needed]
            for (place, _), second in zip(needed, torch.autograd.grad(grads, sources, ups, create_graph=again, allow_unused=True), strict=True):
                found[place] = second
        return tuple(found)

    differentiable(name, save, differentiate)


def _branch(saved: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor as a variable of its own: the upstream gradient may be a function of the others, which must not be counted here."""
    if saved is None or not saved.is_floating_point():
        return saved
    branch = saved.view_as(saved)
    return branch if branch.requires_grad else branch.detach().requires_grad_()
