"""Modules built on the ops, one per published layer."""

from vtkernels.ops.talking_heads_attention.module import TalkingHeadsAttention
from vtkernels.ops.window_attention.module import WindowAttention, WindowAttentionV2

__all__ = ["TalkingHeadsAttention", "WindowAttention", "WindowAttentionV2"]
