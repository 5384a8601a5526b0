"""Optimizers: sharpness-aware minimisation around any base optimizer, its variants, and base optimizers torch lacks."""

from vtkernels.optim.asam import ASAM
from vtkernels.optim.esam import ESAM
from vtkernels.optim.friendly import FriendlySAM
from vtkernels.optim.gsam import GSAM
from vtkernels.optim.lamb import LAMB
from vtkernels.optim.looksam import LookSAM
from vtkernels.optim.m_sharpness import m_sharpness_passes
from vtkernels.optim.sam import SAM
from vtkernels.optim.sgdw import SGDW

__all__ = ["ASAM", "ESAM", "GSAM", "LAMB", "SAM", "SGDW", "FriendlySAM", "LookSAM", "m_sharpness_passes"]
