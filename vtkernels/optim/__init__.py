"""Optimizers (sharpness-aware minimisation around any base optimizer, its variants, base optimizers torch lacks) and what steers them."""

from vtkernels.optim import schedules
from vtkernels.optim.asam import ASAM
from vtkernels.optim.clip import clip_grad_adaptive_, clip_grad_norm_, clip_grad_value_
from vtkernels.optim.early_stopping import EarlyStopping
from vtkernels.optim.ema import Ema
from vtkernels.optim.esam import ESAM
from vtkernels.optim.factory import create_optimizer, optimizer_class
from vtkernels.optim.friendly import FriendlySAM
from vtkernels.optim.groups import (
    decoupled_weight_decay,
    head_parameters,
    layer_scales,
    normalized_weight_decay,
    param_groups,
    swin_simmim_layers,
    trunk_and_head,
)
from vtkernels.optim.gsam import GSAM
from vtkernels.optim.lamb import LAMB
from vtkernels.optim.looksam import LookSAM
from vtkernels.optim.m_sharpness import m_sharpness_passes
from vtkernels.optim.rmsprop import RMSpropTF
from vtkernels.optim.sam import SAM
from vtkernels.optim.schedules import linear_scaled, set_lr
from vtkernels.optim.sgdw import SGDW

__all__ = [
    "ASAM",
    "ESAM",
    "EarlyStopping",
    "Ema",
    "FriendlySAM",
    "GSAM",
    "LAMB",
    "LookSAM",
    "RMSpropTF",
    "SAM",
    "SGDW",
    "clip_grad_adaptive_",
    "clip_grad_norm_",
    "clip_grad_value_",
    "create_optimizer",
    "decoupled_weight_decay",
    "head_parameters",
    "layer_scales",
    "linear_scaled",
    "m_sharpness_passes",
    "normalized_weight_decay",
    "optimizer_class",
    "param_groups",
    "schedules",
    "set_lr",
    "swin_simmim_layers",
    "trunk_and_head",
]
