"""Small things that several replacements do with other libraries' layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels.integrations.instances import is_ours
from vtkernels.ops.linear import linear


def rate(dropout: nn.Module) -> float:
    """What the dropout module drops at present; 0 for an Identity."""
    return dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0


def padded(x: Tensor, window: tuple[int, int]) -> bool:
    """Whether a map [B, H, W, C] is no multiple of the window. Only then do the biases of a padded token's projection matter."""
    return bool(x.shape[1] % window[0] or x.shape[2] % window[1])


def project(x: Tensor, layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product with weight and bias made of several, by whichever code the layer itself runs on."""
    own = layer.__dict__.get("forward")
    if is_ours(own) and x.device.type == "cpu":
        return linear(x, weight, bias, backend=own.keywords["backend"])
    return F.linear(x, weight, bias)


def project_together(x: Tensor, layers: tuple[nn.Linear, ...]) -> tuple[Tensor, Tensor | None]:
    """Several projections as one, their outputs side by side, and their biases likewise (None if there are none)."""
    bias = None
    if any(layer.bias is not None for layer in layers):
        bias = torch.cat([layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias for layer in layers])
    return project(x, layers[0], torch.cat([layer.weight for layer in layers]), bias), bias
