"""Fused kernels for vision transformers, as torch ops with interchangeable backends."""

from vtkernels.ops.window_attention import window_attention
from vtkernels.version import __version__

__all__ = ["__version__", "window_attention"]
