"""Classes of images."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.models import Model
from vtkernels.train.task import Outcome, Sums, Task, classification_sums


class ClassificationTask(Task):
    """A classifier and its criterion.

    Args:
        model: images -> logits; of a `vtkernels` model the features come along, which auxiliary losses want.
        criterion: (logits, targets) -> scalar: one of `vtkernels.losses` or of torch, for classes [B] or probabilities [B, K]. With views of
            each image stacked, [V * B, K] logits meet [B] targets, as `AugMixLoss` takes them. With reduction="none", the loss is the mean.
        eval_mode: train with the model in evaluation mode, as DeiT does at a higher resolution.
    """

    metrics = ("loss", "top1", "top5")

    def __init__(self, model: nn.Module, criterion: Callable[[Tensor, Any], Tensor] | None = None, *, eval_mode: bool = False):
        super().__init__()
        self.model, self.criterion, self.eval_mode = model, criterion or nn.CrossEntropyLoss(), eval_mode
        self._forward_model = self._run

    def forward(self, images: Tensor, targets: Any, epoch: float = 0.0) -> Outcome:
        logits, features = self._forward_model(images)
        # in training some distilled models answer with a second head's logits
        logits, distilled = logits if isinstance(logits, tuple) else (logits, None)
        loss = self.criterion(logits.float(), targets)
        if loss.dim() == 0:
            return Outcome(loss, logits, features, distilled)
        return Outcome(loss.mean(), logits, features, distilled, losses=loss)

    def evaluate(self, images: Tensor, targets: Any) -> Sums:
        return classification_sums(self._forward_model(images)[0], targets)

    def compile_model(self, **options: Any) -> None:
        self._forward_model = torch.compile(self._run, **options)

    def train(self, mode: bool = True) -> "ClassificationTask":
        super().train(mode)
        if self.eval_mode:
            self.model.eval()
        return self

    def _run(self, images: Tensor) -> tuple[Any, Tensor | None]:
        if not isinstance(self.model, Model):
            return self.model(images), None
        features = self.model.forward_features(images)
        return self.model.forward_head(features), features
