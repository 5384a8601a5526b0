"""Fused kernels for vision transformers, as torch ops with interchangeable backends."""

import importlib
from typing import Any

from vtkernels._core.explain import backends, explain
from vtkernels.ops.class_attention import class_attention, pooled_attention
from vtkernels.ops.drloc_pairs import drloc_pairs
from vtkernels.ops.jsd import augmix_loss, jsd_consistency
from vtkernels.ops.sam import adamw_step_, sam_perturb_, sam_restore_, sam_square_sum, sgd_step_
from vtkernels.ops.talking_heads_attention import talking_heads_attention
from vtkernels.ops.window_attention import window_attention
from vtkernels.version import __version__

__all__ = [
    "__version__",
    "adamw_step_",
    "augmix_loss",
    "backends",
    "drloc_pairs",
    "class_attention",
    "explain",
    "jsd_consistency",
    "losses",
    "nn",
    "optim",
    "pooled_attention",
    "sam_perturb_",
    "sam_restore_",
    "sam_square_sum",
    "sgd_step_",
    "talking_heads_attention",
    "window_attention",
]

_LAZY = ("losses", "nn", "optim")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"vtkernels.{name}")
    raise AttributeError(f"module 'vtkernels' has no attribute {name!r}")
