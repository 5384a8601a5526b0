from vtkernels.ops.talking_heads_attention.op import talking_heads_attention

__all__ = ["talking_heads_attention"]
