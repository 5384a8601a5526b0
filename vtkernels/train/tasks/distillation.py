"""Learning from a teacher."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtkernels._core import check
from vtkernels.train.task import Outcome, Task, WrappingTask


class DistillationTask(WrappingTask):
    """(1 - alpha) times the inner task's loss, and alpha times the distance to a teacher's answer to the same images.

    Where the model has a head of its own for that (DeiT's distillation token), that head learns from the teacher and the head of the classes
    from the targets; otherwise one head learns both. The teacher is frozen, in evaluation mode, no part of the state, and not optimized.

    Args:
        inner: usually a `ClassificationTask`.
        teacher: images -> logits of the same classes.
        form: "hard", the cross-entropy with the teacher's first class; or "soft", tau^2 KL(teacher || student) at temperature tau.
        alpha: weight of the teacher.
        temperature: tau.
        mean: of the soft form over "samples" as published by Hinton, or over "elements" as in DeiT's code, which is 1 / K of that.
    """

    def __init__(self, inner: Task, teacher: nn.Module, form: str = "hard", *, alpha: float = 0.5, temperature: float = 1.0, mean: str = "samples"):
        super().__init__(inner)
        for name, value, allowed in (("form", form, ("hard", "soft")), ("mean", mean, ("samples", "elements"))):
            if value not in allowed:
                check.fail("DistillationTask", name, f"be one of {', '.join(allowed)}", repr(value))
        if not 0 <= alpha <= 1 or temperature <= 0:
            check.fail("DistillationTask", "alpha and temperature", "lie in [0, 1] and above 0", (alpha, temperature))
        self.form, self.alpha, self.temperature, self.mean = form, alpha, temperature, mean
        # in a tuple it is no submodule: neither saved nor optimized nor exchanged
        self._teacher = (teacher.eval().requires_grad_(False),)
        if hasattr(self.model, "distilled_training"):
            self.model.distilled_training = bool(getattr(self.model.config, "distilled", False))

    @property
    def teacher(self) -> nn.Module:
        return self._teacher[0]

    def forward(self, images: Tensor, targets: Any, epoch: float = 0.0) -> Outcome:
        outcome = self.inner(images, targets, epoch)
        with torch.no_grad():
            taught = self.teacher(images).float()
        student = outcome.logits if outcome.distilled is None else outcome.distilled
        distance = self.distance(student.float(), taught)
        outcome.loss = (1 - self.alpha) * outcome.loss + self.alpha * distance
        outcome.logs["distillation"] = distance.detach()
        return outcome

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar from logits [B, K] of both."""
        if student.shape != teacher.shape:
            check.fail("DistillationTask", "the teacher's logits", f"have shape {list(student.shape)}", list(teacher.shape), "do both know the same classes?")
        if self.form == "hard":
            return F.cross_entropy(student, teacher.argmax(1))
        tau = self.temperature
        logs = F.log_softmax(student / tau, 1), F.log_softmax(teacher / tau, 1)
        count = len(student) if self.mean == "samples" else student.numel()
        return F.kl_div(*logs, reduction="sum", log_target=True) * (tau**2 / count)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DistillationTask":
        # the teacher goes where the student goes
        self.teacher._apply(fn)
        return super()._apply(fn, recurse)
