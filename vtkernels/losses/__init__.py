"""Losses built on the ops."""

from vtkernels.losses.augmix import AugMixLoss, JsdCrossEntropy
from vtkernels.losses.drloc import DrlocLoss, drloc_weight

__all__ = ["AugMixLoss", "DrlocLoss", "JsdCrossEntropy", "drloc_weight"]
