"""Losses built on the ops."""

from vtkernels.losses.augmix import AugMixLoss, JsdCrossEntropy

__all__ = ["AugMixLoss", "JsdCrossEntropy"]
