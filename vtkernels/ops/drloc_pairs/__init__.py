from vtkernels.ops.drloc_pairs.op import drloc_pairs

__all__ = ["drloc_pairs"]
