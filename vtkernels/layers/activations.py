"""Activations by name: configurations are data, and a name survives a JSON file."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vtkernels._core import check


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in ACTIVATIONS:
        check.fail("activation", "name", f"be one of {', '.join(ACTIVATIONS)}", repr(name))
    return ACTIVATIONS[name]
