"""Losses that are functions, as modules."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from vtkernels._core import check


class Loss(nn.Module):
    """`function` with its keyword arguments kept: those are what the constructor takes, and tensors among them become buffers."""

    function: ClassVar[Callable[..., Tensor]]

    def __init_subclass__(cls) -> None:
        options = [option for option in inspect.signature(cls.function).parameters.values() if option.kind is option.KEYWORD_ONLY]
        cls.__signature__ = inspect.Signature(options)

    def __init__(self, **options: Any):
        super().__init__()
        known = type(self).__signature__.parameters
        for name in options:
            if name not in known:
                check.fail(type(self).__name__, "its arguments", f"be among {', '.join(known)}", name, error=TypeError)
        self._names = list(known)
        for name, option in known.items():
            value = options.get(name, option.default)
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *inputs: Tensor) -> Tensor:
        return type(self).function(*inputs, **{name: getattr(self, name) for name in self._names})

    def extra_repr(self) -> str:
        options = {name: getattr(self, name) for name in self._names}
        return ", ".join(f"{name}={list(value.shape) if isinstance(value, Tensor) else repr(value)}" for name, value in options.items())
