"""Tasks: what is learnt, and by which loss."""

from vtkernels.train.tasks.adversarial import AdversarialTask
from vtkernels.train.tasks.classification import ClassificationTask
from vtkernels.train.tasks.detection import DetectionTask
from vtkernels.train.tasks.distillation import DistillationTask
from vtkernels.train.tasks.drloc import DrlocTask
from vtkernels.train.tasks.segmentation import SegmentationTask
from vtkernels.train.tasks.semi_supervised import FixMatchTask, NoisyStudentTask

__all__ = ["AdversarialTask", "ClassificationTask", "DetectionTask", "DistillationTask", "DrlocTask", "FixMatchTask", "NoisyStudentTask", "SegmentationTask"]
