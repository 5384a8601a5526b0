"""Losses built on the ops."""

from vtkernels.losses.drloc import DrlocLoss, drloc_weight

__all__ = ["DrlocLoss", "drloc_weight"]
