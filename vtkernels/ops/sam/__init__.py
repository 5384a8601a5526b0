from vtkernels.ops.sam.op import sam_perturb_, sam_restore_, sam_square_sum
from vtkernels.ops.sam.steps import adamw_step_, sgd_step_

__all__ = ["adamw_step_", "sam_perturb_", "sam_restore_", "sam_square_sum", "sgd_step_"]
