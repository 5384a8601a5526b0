"""What a replacement is, and when it may stand in for a module's own method.

A rule names a class of another library, the one method of it to replace, and all that this method relies on: which classes
its children have, which of their methods it calls, which parameters there are. A module that fits is given the replacement
as an attribute of the instance, which hides the class's method: the module, its type, parameters, hooks and state stay what they are.

Nothing of another library is imported. A class is recognised by its name among the bases of the module's type, and its own
methods are found there.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vtkernels._core.explain import explain
from vtkernels._core.op import OPS
from vtkernels.integrations.instances import hooked, is_ours, original
from vtkernels.integrations.trial import differs

# an official repository's files are copied into projects: any package may hold them, but not these, which are known by name
_NAMED_LIBRARIES = ("timm", "torchvision", "transformers", "torch", "vtkernels")


@dataclass(frozen=True, eq=False)
class Part:
    """What a rule expects of one module: "module:Class" names it may have ("*.module" for any package), and what it consists of."""

    classes: tuple[str, ...]
    methods: tuple[str, ...] = ("forward",)
    parameters: tuple[str, ...] = ()
    # that may be there or not
    optional: tuple[str, ...] = ()
    # None: any
    children: tuple[str, ...] | None = ()


LINEAR = Part(("torch.nn.modules.linear:Linear",), parameters=("weight",), optional=("bias",))
DROPOUT = Part(("torch.nn.modules.dropout:Dropout", "torch.nn.modules.linear:Identity"))
SOFTMAX = Part(("torch.nn.modules.activation:Softmax",))


@dataclass(frozen=True, eq=False)
class Rule:
    """`function(module, *arguments, backend)` in the place of `method` of the modules that fit `parts` (the module itself is "")."""

    op: str
    parts: dict[str, Part]
    # op arguments as this module will make them, small: what chooses the backend
    sample: Callable[[nn.Module], dict[str, Any]]
    # arguments to try the method with, on the CPU in float64
    example: Callable[[nn.Module, torch.Generator], tuple[Any, ...]]
    method: str = "forward"
    # why this very module cannot be replaced, for reasons beyond its parts
    refuses: Callable[[nn.Module], str | None] = lambda module: None
    # what makes two modules of the same classes compute differently: each variant is tried once
    variant: Callable[[nn.Module], Any] = lambda module: None
    function: Callable[..., Any] = field(default=None, repr=False)
    replacement: Callable[..., Any] = field(default=None, repr=False)

    def distance(self, module: nn.Module) -> int | None:
        """How far up the bases of the module's type the class of the rule stands; None if it is not among them."""
        base = nearest_base(type(module), self.parts[""].classes)
        return None if base is None else type(module).__mro__.index(base)

    def why_not(self, module: nn.Module) -> str | None:
        """Why the replacement might not do what the module does; None if it does. Asked before each call, too."""
        types = []
        for path, part in self.parts.items():
            child = _child(module, path)
            types.append(type(child))
            reason = _misfit(path, child, part)
            if reason is None and path and hooked(child):
                reason = f"a hook on {path} would not be called, or would see tokens in another order"
            if reason is not None:
                return reason
        return self.refuses(module) or differs(self, module, (*types, self.variant(module)))

    def why_slow(self, module: nn.Module, backend: str) -> str | None:
        """Why the op would gain nothing: no backend but the reference can run it."""
        if backend == "reference":
            return None
        if backend not in ("auto", *OPS[self.op].backend_names):
            return f"{self.op} has no backend {backend!r}"
        found = explain(self.op, **self.sample(module), backend=backend)
        if found.chosen() not in (None, "reference"):
            return None
        reasons = found.reasons["forward"]
        shown = {name: reason for name, reason in reasons.items() if reason and (found.asked == "auto" or name == found.asked)}
        return f"no fast backend of {self.op} runs here: " + "; ".join(f"{name}: {reason}" for name, reason in shown.items())


RULES: list[Rule] = []


def replaces(op: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a rule of the function below: `function(module, *arguments, backend)` computes what the module's method did."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def replacement(module: nn.Module, *arguments: Any, backend: str, **named: Any) -> Any:
            # a module may have changed since: a hook, another child, a reloaded class. A compiled graph is of the module as it was
            if not torch.compiler.is_compiling() and rule.why_not(module) is not None:
                return original(module, rule.method)(*arguments, **named)
            return function(module, *arguments, backend=backend, **named)

        rule = Rule(op, function=function, replacement=replacement, **options)
        replacement.rule = rule
        RULES.append(rule)
        return replacement

    return register


def is_own(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] == "vtkernels"


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of the module's class or of its nearest base that has one; what is ours needs none."""
    if is_own(module):
        return None
    distances = [(distance, number) for number, rule in enumerate(RULES) if (distance := rule.distance(module)) is not None]
    return RULES[min(distances)[1]] if distances else None


def nearest_base(given: type, names: tuple[str, ...]) -> type | None:
    """The nearest base of a type that has one of these names."""
    return next((base for base in given.__mro__ if any(_is_named(base, name) for name in names)), None)


def _is_named(base: type, name: str) -> bool:
    module, _, qualname = name.partition(":")
    if base.__qualname__ != qualname:
        return False
    if not module.startswith("*."):
        return base.__module__ == module
    return f".{base.__module__}".endswith(module[1:]) and base.__module__.split(".")[0] not in _NAMED_LIBRARIES


def _child(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split(".") if path else ():
        module = None if module is None else module._modules.get(name)
    return module


def _misfit(path: str, module: nn.Module | None, part: Part) -> str | None:
    """Why this is not the module that the rule knows."""
    if module is None:
        return f"it has no module {path}"
    for method in part.methods:
        if method in module.__dict__ and not is_ours(module.__dict__[method]):
            return f"{path or 'it'} has a {method} of its own, set on the instance"
    parameters = tuple([name for name, value in module._parameters.items() if value is not None])
    return _misfit_of(path or "it", type(module), parameters, tuple(module._modules), part)


@functools.cache
def _misfit_of(subject: str, given: type, parameters: tuple[str, ...], children: tuple[str, ...], part: Part) -> str | None:
    """What the type and the names of a module tell. Cached, as it is asked before each call."""
    base = nearest_base(given, part.classes)
    if base is None:
        return f"{subject} is a {_qualified(given)}, expected {' or '.join(part.classes)}"
    for method in part.methods:
        if getattr(given, method, None) is not getattr(base, method, None):
            return f"{subject} is a {_qualified(given)}, which overrides {method} of {_qualified(base)}"
    if not set(part.parameters) <= set(parameters) <= {*part.parameters, *part.optional}:
        return f"{subject} has the parameters {sorted(parameters)}, expected {sorted(part.parameters)}"
    if part.children is not None and set(children) != set(part.children):
        return f"{subject} has the children {sorted(children)}, expected {sorted(part.children)}"
    return None


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
