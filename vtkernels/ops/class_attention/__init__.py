from vtkernels.ops.class_attention.op import class_attention
from vtkernels.ops.class_attention.pooled import pooled_attention

__all__ = ["class_attention", "pooled_attention"]
