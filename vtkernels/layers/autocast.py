"""Computations that must not lose precision to autocast."""

import contextlib

import torch
from torch import Tensor

from vtkernels._core.autocast import has_autocast


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """A context in which operations keep their operands' types, on the device of x; not every device has an autocast to switch off."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if has_autocast(device) else contextlib.nullcontext()
