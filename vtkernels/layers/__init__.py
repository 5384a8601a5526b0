"""Layers that several models share, in plain PyTorch on the ops below."""

from vtkernels.layers.activations import ACTIVATIONS, activation
from vtkernels.layers.attention import Attention
from vtkernels.layers.autocast import without_autocast
from vtkernels.layers.block import Block
from vtkernels.layers.drop_path import DropPath, linear_rates
from vtkernels.layers.layer_scale import LayerScale
from vtkernels.layers.mlp import Mlp, Mlp2d
from vtkernels.layers.norm import LayerNorm2d
from vtkernels.layers.patch_embed import PatchEmbed
from vtkernels.layers.pos_embed import resize_positions, sin_cos_positions
from vtkernels.layers.shifted_patches import Patches, ShiftedPatches
from vtkernels.layers.token_attention import TokenAttention
from vtkernels.layers.token_performer import TokenPerformer

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "Block",
    "DropPath",
    "LayerNorm2d",
    "LayerScale",
    "Mlp",
    "Mlp2d",
    "PatchEmbed",
    "Patches",
    "ShiftedPatches",
    "TokenAttention",
    "TokenPerformer",
    "activation",
    "linear_rates",
    "resize_positions",
    "sin_cos_positions",
    "without_autocast",
]
