from vtkernels.ops.linear.mlp import mlp
from vtkernels.ops.linear.op import linear

__all__ = ["linear", "mlp"]
