"""Jensen-Shannon consistency, alone or beside a cross-entropy, as plain tensor algebra: the specification every backend is held to.

Any floating dtype; half precision is widened to float32 first, as autocast does. `losses` is differentiable by autograd,
twice too. Letters: V views, B samples, K classes.
"""

import torch
from torch import Tensor

from vtkernels._core.op import Backend
from vtkernels.ops.jsd.common import FLOOR, Call, loss_dtype, refuse_target


def losses(call: Call) -> Tensor:
    """[B]: the loss of each sample."""
    log_p, p, log_m, _ = _distributions(call)
    loss = call.weight * sum(w * (q * (log_q - log_m)).sum(-1) for w, q, log_q in zip(call.weights, p, log_p, strict=True))
    if call.target is not None:
        target = smoothed_target(call)
        # 0 * ln 0 is 0; ln p from the logits anew, as `log_p` is kept finite
        loss = loss - torch.where(target == 0, 0.0, target * _logits(call)[0].log_softmax(-1)).sum(-1)
    return loss


def reduced(call: Call) -> Tensor:
    """The losses as the call's reduction wants them."""
    loss = losses(call) * call.share
    return loss if call.reduction == "none" else loss.sum()


def gradient(call: Call, grad_loss: Tensor) -> Tensor:
    """[V * B, K]: the closed form. `grad_loss` is of the reduced loss, or of each sample's."""
    log_p, p, log_m, kept = _distributions(call)
    # through the softmax; where the floor holds the mixture, its derivative does not cancel the 1 of d(p ln p)
    g = log_p - log_m + (~kept).to(p.dtype)
    d_logits = p * (g - (p * g).sum(-1, keepdim=True)) * call.weight
    d_logits = torch.stack([w * d for w, d in zip(call.weights, d_logits, strict=True)])
    if call.target is not None:
        target = smoothed_target(call)
        d_logits[0] += target.sum(-1, keepdim=True) * p[0] - target
    per_sample = (grad_loss * call.share).expand(call.batch)
    return (d_logits * per_sample[:, None]).flatten(0, 1).to(call.logits.dtype)


def smoothed_target(call: Call) -> Tensor:
    """[B, K]: every class gets its share of `label_smoothing`. A hard target that names no class is NaN."""
    dtype = loss_dtype(call.logits)
    if call.hard:
        classes = torch.arange(call.classes, device=call.target.device)
        target = (call.target[:, None] == classes).to(dtype)
        target = torch.where(((call.target >= 0) & (call.target < call.classes))[:, None], target, torch.nan)
    else:
        target = call.target.to(dtype)
    return (1.0 - call.label_smoothing) * target + call.label_smoothing / call.classes


def _logits(call: Call) -> Tensor:
    return call.logits.to(loss_dtype(call.logits)).unflatten(0, (call.num_views, call.batch))


def _distributions(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ln p and p [V, B, K], the logarithm of their floored mixture [B, K], and where it is not floored."""
    log_p = _logits(call).log_softmax(-1)
    # finite, so that a class of probability 0 contributes 0 and not 0 * inf
    log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min)
    p = log_p.exp()
    mixture = sum(w * q for w, q in zip(call.weights, p, strict=True))
    return log_p, p, mixture.clamp(FLOOR, 1.0).log(), mixture >= FLOOR


def forward(call: Call, with_gradient: bool) -> tuple[Tensor, Tensor]:
    if call.hard and call.target.device.type == "cpu":
        wrong = ((call.target < 0) | (call.target >= call.classes)).nonzero()
        if len(wrong):
            refuse_target(call, int(wrong[0]))
    loss = reduced(call)
    return loss, gradient(call, loss.new_ones(())) if with_gradient else call.logits.new_empty(0)


BACKEND = Backend("reference", lambda phase, call: None, {"forward": forward, "backward": gradient})
