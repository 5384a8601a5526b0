"""Data: sets of the sources, loading, and everything that is done to a batch before the model sees it."""

import importlib
from typing import Any

# name -> module, loaded when it is asked for: a name of a set needs neither torch's loader nor SciPy
_LAZY_NAMES = {
    "Corrupted": "corruptions",
    "CorruptImage": "datasets",
    "Cutout": "mix",
    "Loader": "loader",
    "Mixup": "mix",
    "PseudoLabelled": "pseudo_labels",
    "PseudoLabels": "pseudo_labels",
    "RandomErasing": "mix",
    "StreamTargets": "streams",
    "TwoStreams": "streams",
    "corrupt": "corruptions",
    "create_dataset": "datasets",
    "create_loader": "loader",
    "eval_transform": "transforms",
    "fgsm": "adversarial",
    "list_datasets": "datasets",
    "pgd": "adversarial",
    "soft_targets": "mix",
    "train_transform": "transforms",
}
_LAZY = ("adversarial", "augment", "corruptions", "datasets", "joint", "loader", "mix", "pseudo_labels", "samplers", "streams", "transforms")

__all__ = [*sorted(_LAZY_NAMES), *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"vtkernels.data.{name}")
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(f"vtkernels.data.{_LAZY_NAMES[name]}"), name)
    raise AttributeError(f"module 'vtkernels.data' has no attribute {name!r}")
