"""What op.py and the backends share: one call with its derived sizes, the targets' range, and the gradient of soft targets."""

from typing import NamedTuple

import torch
from torch import Tensor

from vtkernels._core import check

# The mixture is not let below this before its logarithm; AugMix's constant
FLOOR = 1e-7


class Call(NamedTuple):
    """Both ops in one: cross-entropy of the first view (where there is a target) plus `weight` times the consistency."""

    logits: Tensor  # [V * B, K], all samples of the first view first
    target: Tensor | None  # [B] int64, or [B, K]
    num_views: int
    weights: tuple[float, ...]  # of the views in the mixture, with sum 1
    weight: float
    label_smoothing: float
    reduction: str

    @property
    def batch(self) -> int:
        return self.logits.shape[0] // self.num_views

    @property
    def classes(self) -> int:
        return self.logits.shape[1]

    @property
    def hard(self) -> bool:
        return self.target is not None and self.target.dim() == 1

    @property
    def share(self) -> float:
        """What each sample's loss is multiplied by. The mean over no sample at all is 0."""
        return 1.0 / max(self.batch, 1) if self.reduction == "batchmean" else 1.0


def loss_dtype(logits: Tensor) -> torch.dtype:
    """Losses of half-precision logits are float32: nothing is gained by rounding one number."""
    return torch.promote_types(logits.dtype, torch.float32)


def loss_shape(call: Call) -> tuple[int, ...]:
    return (call.batch,) if call.reduction == "none" else ()


def refuse_target(call: Call, index: int) -> None:
    """Raise for the first hard target that names no class."""
    hint = "drop such samples: there is no ignored class" if int(call.target[index]) < 0 else "is the classifier's last layer as wide as the data has classes?"
    check.fail("augmix_loss", f"target[{index}]", f"lie between 0 and {call.classes - 1}", int(call.target[index]), hint)


def target_gradient(call: Call, grad_loss: Tensor) -> Tensor:
    """Gradient of soft targets: the cross-entropy is linear in them."""
    log_p = call.logits[: call.batch].to(loss_dtype(call.logits)).log_softmax(-1)
    return (log_p * (grad_loss * (-call.share * (1.0 - call.label_smoothing)))).to(call.target.dtype)
