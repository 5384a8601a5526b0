"""Tasks: what is learnt, and by which loss."""

from vtkernels.train.tasks.classification import ClassificationTask
from vtkernels.train.tasks.distillation import DistillationTask
from vtkernels.train.tasks.drloc import DrlocTask
from vtkernels.train.tasks.semi_supervised import FixMatchTask, NoisyStudentTask

__all__ = ["ClassificationTask", "DistillationTask", "DrlocTask", "FixMatchTask", "NoisyStudentTask"]
