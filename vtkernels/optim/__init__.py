"""Optimizers: sharpness-aware minimisation around any base optimizer, and base optimizers torch lacks."""

from vtkernels.optim.lamb import LAMB
from vtkernels.optim.sam import SAM
from vtkernels.optim.sgdw import SGDW

__all__ = ["LAMB", "SAM", "SGDW"]
