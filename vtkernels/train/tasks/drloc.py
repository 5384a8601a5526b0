"""Dense relative localisation beside another task."""

from typing import Any

from torch import Tensor

from vtkernels._core import check
from vtkernels.layers.tokens import to_map
from vtkernels.losses import DrlocLoss
from vtkernels.models import Model
from vtkernels.train.task import Outcome, Task, WrappingTask


class DrlocTask(WrappingTask):
    """Adds a `DrlocLoss` of the model's last feature map. Its heads are the task's: optimizer and data parallelism see them.

    Args:
        inner: a task that gives features, such as `ClassificationTask` with a model of `create_model`.
        drloc: of one scale, with heads of layout "bchw". None makes the usual one for the model.
    """

    def __init__(self, inner: Task, drloc: DrlocLoss | None = None):
        super().__init__(inner)
        if not isinstance(inner.model, Model):
            check.fail("DrlocTask", "the model", "be one of vtkernels.create_model", type(inner.model).__name__, "it asks for feature maps")
        self.drloc = drloc or DrlocLoss(inner.model.head_width, layout="bchw")
        layouts = {head.layout for head in self.drloc.heads}
        if len(self.drloc.heads) != 1 or layouts != {"bchw"}:
            check.fail("DrlocTask", "drloc", "have one scale and layout='bchw'", f"{len(self.drloc.heads)} of {', '.join(layouts)}")

    def forward(self, images: Tensor, targets: Any, epoch: float = 0.0) -> Outcome:
        outcome = self.inner(images, targets, epoch)
        loss = self.drloc(self._last_map(images, outcome.features), epoch)
        outcome.loss = outcome.loss + loss
        outcome.logs["drloc"] = loss.detach()
        return outcome

    def _last_map(self, images: Tensor, features: Tensor | None) -> Tensor:
        if features is None:
            check.fail("DrlocTask", "the inner task", "give features", None, "ClassificationTask does for models of vtkernels.create_model")
        if features.dim() == 4:
            return features
        return to_map(features[:, self.model.prefix_tokens :], self.model.grid(images))
