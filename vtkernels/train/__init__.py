"""Training: when what happens. What is learnt, tasks say; with which values, recipes do."""

import importlib
from typing import Any

# name -> module, loaded when it is asked for
_LAZY_NAMES = {
    "AdversarialTask": "tasks",
    "CheckpointError": "errors",
    "ClassificationTask": "tasks",
    "DetectionTask": "tasks",
    "DistillationTask": "tasks",
    "DrlocTask": "tasks",
    "EpochRecord": "records",
    "FixMatchTask": "tasks",
    "History": "records",
    "Interrupted": "errors",
    "LoaderDied": "errors",
    "NoisyStudentTask": "tasks",
    "NonFiniteLoss": "errors",
    "Observer": "records",
    "Outcome": "task",
    "SegmentationTask": "tasks",
    "Settings": "settings",
    "StepRecord": "records",
    "Task": "task",
    "Trainer": "trainer",
    "WrappingTask": "task",
    "prepare": "distributed",
    "processes": "distributed",
    "seed_all": "random_state",
    "validate": "validation",
}
_LAZY = ("checkpoint", "distributed", "records", "tasks")

__all__ = [*sorted(_LAZY_NAMES), *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    # a module that is named like something in it is loaded as a part of the package by then
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(f"vtkernels.train.{_LAZY_NAMES[name]}"), name)
    if name in _LAZY:
        return importlib.import_module(f"vtkernels.train.{name}")
    raise AttributeError(f"module 'vtkernels.train' has no attribute {name!r}")
