"""Modules built on the ops, one per published layer."""

from vtkernels.ops.class_attention.module import ClassAttention
from vtkernels.ops.drloc_pairs.module import DrlocHead
from vtkernels.ops.talking_heads_attention.module import TalkingHeadsAttention
from vtkernels.ops.window_attention.module import WindowAttention, WindowAttentionV2

__all__ = ["ClassAttention", "DrlocHead", "TalkingHeadsAttention", "WindowAttention", "WindowAttentionV2"]
