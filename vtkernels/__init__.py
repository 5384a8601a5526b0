"""Fused kernels for vision transformers, as torch ops with interchangeable backends."""

import importlib
from typing import Any

from vtkernels._core.explain import backends, explain
from vtkernels.ops.class_attention import class_attention, pooled_attention
from vtkernels.ops.drloc_pairs import drloc_pairs
from vtkernels.ops.jsd import augmix_loss, jsd_consistency
from vtkernels.ops.linear import linear, mlp
from vtkernels.ops.sam import adamw_step_, sam_perturb_, sam_restore_, sam_square_sum, sgd_step_
from vtkernels.ops.talking_heads_attention import talking_heads_attention
from vtkernels.ops.window_attention import window_attention
from vtkernels.version import __version__

__all__ = [
    "__version__",
    "accelerate",
    "acceleration_report",
    "adamw_step_",
    "augmix_loss",
    "backends",
    "drloc_pairs",
    "class_attention",
    "create_model",
    "data",
    "evaluation",
    "explain",
    "integrations",
    "jsd_consistency",
    "layers",
    "linear",
    "list_models",
    "load_checkpoint",
    "losses",
    "mlp",
    "model_info",
    "models",
    "nn",
    "optim",
    "pooled_attention",
    "recipes",
    "restore",
    "sam_perturb_",
    "sam_restore_",
    "sam_square_sum",
    "sgd_step_",
    "talking_heads_attention",
    "train",
    "window_attention",
]

_LAZY = ("data", "evaluation", "integrations", "layers", "losses", "models", "nn", "optim", "recipes", "train")
# names of the layers above the ops, which are not loaded before somebody asks for them
_LAZY_NAMES = {
    "accelerate": "integrations",
    "acceleration_report": "integrations",
    "create_model": "models",
    "list_models": "models",
    "load_checkpoint": "models",
    "model_info": "models",
    "restore": "integrations",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"vtkernels.{name}")
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(f"vtkernels.{_LAZY_NAMES[name]}"), name)
    raise AttributeError(f"module 'vtkernels' has no attribute {name!r}")
