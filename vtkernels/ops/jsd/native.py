"""Consistency and AugMix loss on the CPU: the C++ kernels of csrc/jsd."""

import torch
from torch import Tensor

from vtkernels._core import native
from vtkernels._core.op import Backend
from vtkernels.ops.jsd.common import Call, loss_shape, refuse_target

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(phase: str, call: Call) -> str | None:
    logits = call.logits
    if logits.device.type != "cpu":
        return f"it runs on the CPU, logits are on {logits.device}"
    if logits.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, logits are {logits.dtype}"
    return native.why_missing()


def forward(call: Call, with_gradient: bool) -> tuple[Tensor, Tensor]:
    loss = native.empty(loss_shape(call))
    gradient = native.empty(call.logits.shape if with_gradient else (0,), call.logits.dtype)
    _run(call, None, loss, gradient if with_gradient else None)
    return loss, gradient


def backward(call: Call, grad_loss: Tensor) -> Tensor:
    gradient = native.empty(call.logits.shape, call.logits.dtype)
    _run(call, grad_loss, None, gradient)
    return gradient


def _run(call: Call, grad_loss: Tensor | None, loss: Tensor | None, gradient: Tensor | None) -> None:
    logits, target = call.logits, call.target
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    if target is not None:
        target = target.contiguous() if call.hard else target.float().contiguous()
    wrong = torch.ops.vtkernels_native.jsd.default(
        logits, target, grad_loss, call.num_views, call.weights, call.weight, call.label_smoothing, call.share, loss, gradient
    )
    if wrong >= 0:
        refuse_target(call, wrong)


BACKEND = Backend("cpu", why_not, {"forward": forward, "backward": backward})
