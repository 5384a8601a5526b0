"""Optimizers: sharpness-aware minimisation around any base optimizer."""

from vtkernels.optim.sam import SAM

__all__ = ["SAM"]
