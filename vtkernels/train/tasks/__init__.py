"""Tasks: what is learnt, and by which loss."""

from vtkernels.train.tasks.adversarial import AdversarialTask
from vtkernels.train.tasks.classification import ClassificationTask
from vtkernels.train.tasks.distillation import DistillationTask
from vtkernels.train.tasks.drloc import DrlocTask

__all__ = ["AdversarialTask", "ClassificationTask", "DistillationTask", "DrlocTask"]
