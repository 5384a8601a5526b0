"""What a module's instance carries beside its class: hooks, and methods set on it, ours or others'."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn


def hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def install(module: nn.Module, method: str, replacement: Callable[..., Any], backend: str) -> None:
    """Hide the class's method on this instance. `replacement` has the attribute `rule`, by which it is known again."""
    # a partial, and no bound method: pickle and deepcopy take the module in it along, and dynamo traces through it
    setattr(module, method, functools.partial(replacement, module, backend=backend))


def is_ours(attribute: Any) -> bool:
    return isinstance(attribute, functools.partial) and hasattr(attribute.func, "rule")


def original(module: nn.Module, method: str) -> Callable[..., Any]:
    """The class's own method, whatever hides it."""
    return functools.partial(getattr(type(module), method), module)


def strip(module: nn.Module) -> nn.Module:
    """Take hooks and replacements off a module and all within it."""
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
        for name in [name for name, value in part.__dict__.items() if is_ours(value)]:
            delattr(part, name)
    return module
