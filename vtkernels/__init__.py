"""Fused kernels for vision transformers, as torch ops with interchangeable backends."""

import importlib
from typing import Any

from vtkernels._core.explain import backends, explain
from vtkernels.ops.class_attention import class_attention, pooled_attention
from vtkernels.ops.sam import adamw_step_, sam_perturb_, sam_restore_, sam_square_sum, sgd_step_
from vtkernels.ops.window_attention import window_attention
from vtkernels.version import __version__

__all__ = [
    "__version__",
    "adamw_step_",
    "backends",
    "class_attention",
    "explain",
    "nn",
    "optim",
    "pooled_attention",
    "sam_perturb_",
    "sam_restore_",
    "sam_square_sum",
    "sgd_step_",
    "window_attention",
]

_LAZY = ("nn", "optim")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"vtkernels.{name}")
    raise AttributeError(f"module 'vtkernels' has no attribute {name!r}")
