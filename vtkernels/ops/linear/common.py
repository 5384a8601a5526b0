"""What every backend of linear and mlp shares: the calls, and how they see tokens."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vtkernels._core.autocast import has_autocast

# in the order of csrc/linear/kernel.h
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu")
QUICK_GELU_SLOPE = 1.702


class Call(NamedTuple):
    """One linear layer after validation, the same for the forward and the backward of every backend."""

    x: Tensor  # [..., C]
    weight: Tensor  # [D, C]
    bias: Tensor | None  # [D]
    activation: str
    keep: bool  # a backward will come

    @property
    def rows(self) -> int:
        return math.prod(self.x.shape[:-1])

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.x.shape[:-1], self.weight.shape[0])

    @property
    def before_shape(self) -> tuple[int, ...]:
        """Of what the activation is applied to, where the backward needs it."""
        return self.out_shape if self.keep and self.activation != "none" else (0,)

    @property
    def products(self) -> int:
        """Multiplications with additions of the forward; the backward has twice as many."""
        return self.rows * self.weight.numel()


class MlpCall(NamedTuple):
    """Two linear layers with an activation between them."""

    x: Tensor  # [..., C]
    first: Tensor  # [H, C]
    first_bias: Tensor | None  # [H]
    second: Tensor  # [D, H]
    second_bias: Tensor | None  # [D]
    activation: str
    keep: bool

    @property
    def rows(self) -> int:
        return math.prod(self.x.shape[:-1])

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.x.shape[:-1], self.second.shape[0])

    @property
    def hidden_shape(self) -> tuple[int, ...]:
        """Of the first layer's output, before the activation, where the backward needs it."""
        return (*self.x.shape[:-1], self.first.shape[0]) if self.keep else (0,)

    @property
    def products(self) -> int:
        return self.rows * (self.first.numel() + self.second.numel())


def as_rows(x: Tensor) -> Tensor:
    """[..., C] as [rows, C]; also where no row is left to tell how many there are."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def autocast(value: Tensor | None) -> Tensor | None:
    """In autocast's dtype, where it is on."""
    # not every device has an autocast mode: to ask for meta's is an error
    if not isinstance(value, Tensor) or not has_autocast(value.device.type) or not torch.is_autocast_enabled(value.device.type):
        return value
    return value.to(torch.get_autocast_dtype(value.device.type)) if value.is_floating_point() and value.dtype != torch.float64 else value
