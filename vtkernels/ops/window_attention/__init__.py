from vtkernels.ops.window_attention.op import window_attention

__all__ = ["window_attention"]
