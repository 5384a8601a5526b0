"""Layers that several models share, in plain PyTorch on the ops below."""

from vtkernels.layers.activations import ACTIVATIONS, activation
from vtkernels.layers.attention import Attention
from vtkernels.layers.autocast import without_autocast
from vtkernels.layers.block import Block, ScaledBlock
from vtkernels.layers.boxes import box_areas, clip_boxes, non_maximum_suppression, pairwise_intersections, pairwise_iou
from vtkernels.layers.depthwise_separable import DepthwiseSeparableConv, SeparableConv2d
from vtkernels.layers.drop_path import DropPath, linear_rates
from vtkernels.layers.initial import lecun_normal, truncated_normal_linears, xavier_normal
from vtkernels.layers.layer_scale import LayerScale
from vtkernels.layers.linear import Linear, take_over_linear_layers
from vtkernels.layers.mlp import Mlp, Mlp2d
from vtkernels.layers.norm import GroupNorm, LayerNorm2d
from vtkernels.layers.patch_embed import PatchEmbed
from vtkernels.layers.pos_embed import carry_positions, resize_positions, sin_cos_positions
from vtkernels.layers.pyramid import ConvNormAct, PyramidPooling, TopDown
from vtkernels.layers.same_padding import Conv2dSame
from vtkernels.layers.shifted_patches import Patches, ShiftedPatches
from vtkernels.layers.squeeze_excite import SqueezeExcite
from vtkernels.layers.token_attention import TokenAttention
from vtkernels.layers.token_performer import TokenPerformer
from vtkernels.layers.tokens import ClassToken, DistillationToken, prepend_tokens, to_map, to_tokens
from vtkernels.layers.weight_norm import MeanOnlyBatchNorm2d, WeightNormConv2d, WeightNormLinear
from vtkernels.layers.weight_standardisation import StdConv2d

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "Block",
    "ClassToken",
    "Conv2dSame",
    "ConvNormAct",
    "DepthwiseSeparableConv",
    "DistillationToken",
    "DropPath",
    "GroupNorm",
    "LayerNorm2d",
    "LayerScale",
    "Linear",
    "MeanOnlyBatchNorm2d",
    "Mlp",
    "Mlp2d",
    "PatchEmbed",
    "Patches",
    "PyramidPooling",
    "ScaledBlock",
    "SeparableConv2d",
    "ShiftedPatches",
    "SqueezeExcite",
    "StdConv2d",
    "TokenAttention",
    "TokenPerformer",
    "TopDown",
    "WeightNormConv2d",
    "WeightNormLinear",
    "activation",
    "box_areas",
    "carry_positions",
    "clip_boxes",
    "lecun_normal",
    "linear_rates",
    "non_maximum_suppression",
    "pairwise_intersections",
    "pairwise_iou",
    "prepend_tokens",
    "resize_positions",
    "sin_cos_positions",
    "take_over_linear_layers",
    "to_map",
    "to_tokens",
    "truncated_normal_linears",
    "without_autocast",
    "xavier_normal",
]
