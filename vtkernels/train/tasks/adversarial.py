"""Another task on images that were moved against it."""

from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.data.adversarial import pgd
from vtkernels.data.datasets import Statistics
from vtkernels.train.task import Outcome, Task, WrappingTask


class AdversarialTask(WrappingTask):
    """Trains on the worst images found by projected gradient ascent around those given. Evaluation sees the images as they are.

    Args:
        inner: a task whose model maps images to logits.
        epsilon: radius of the ball, of pixels in [0, 1].
        statistics: by which the given images are normalised; None if they are not.
        eval_mode: whether the attack sees the model as in evaluation. Else dropout and running statistics move during the ascent, too.
        attack: options of `vtkernels.data.adversarial.pgd`.
    """

    def __init__(self, inner: Task, epsilon: float, statistics: Statistics | None = None, *, eval_mode: bool = False, **attack: Any):
        super().__init__(inner)
        self.epsilon, self.eval_mode, self.attack = epsilon, eval_mode, attack
        mean, std = statistics or Statistics((0.0,) * 3, (1.0,) * 3)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, device="cpu").view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, targets: Any, epoch: float = 0.0) -> Outcome:
        return self.inner(self.moved(images, targets), targets, epoch)

    def moved(self, images: Tensor, targets: Tensor) -> Tensor:
        """The worst images that were found, normalised like those given."""
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        # rounding in the normalisation may leave [0, 1] by some ulps
        pixels = (images.float() * std + mean).clamp(0, 1)
        if self.eval_mode:
            self.model.eval()
        try:
            worst = pgd(lambda x: _logits(self.model((x - mean) / std)), pixels, targets, self.epsilon, loss=_each_loss, **self.attack)
        finally:
            # what is frozen stays as in evaluation
            self.train(self.training)
        return ((worst - mean) / std).to(images.dtype)


def _logits(answer: Any) -> Tensor:
    return (answer[0] if isinstance(answer, tuple) else answer).float()


def _each_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, targets, reduction="none")
