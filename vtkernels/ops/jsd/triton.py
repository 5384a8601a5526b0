"""Consistency and AugMix loss on NVIDIA GPUs: the launchers of the Triton kernels. Triton itself is imported by the first call that runs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtkernels._core import gpu, tuned
from vtkernels._core.op import Backend
from vtkernels.ops.jsd.common import Call

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# views are unrolled: what is made of each is kept in registers, or its code repeated
_MOST_VIEWS = 8
# numbers of all views that the registers of one program hold
_IN_REGISTERS = 16384
_TILE = 2048


class Plan(NamedTuple):
    """How a kernel is launched."""

    tiled: bool
    block: int  # classes handled at once
    num_warps: int


def why_not(phase: str, call: Call) -> str | None:
    logits = call.logits
    if not (logits.device.type == "cuda" or logits.device.type == "cpu" and gpu.interpreted()):
        return f"it runs on CUDA devices, logits are on {logits.device}"
    if logits.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, logits are {logits.dtype}"
    if call.num_views > _MOST_VIEWS:
        return f"it takes at most {_MOST_VIEWS} views, this call has {call.num_views}"
    if logits.device.type == "cuda":
        major, minor = capability = gpu.capability(logits.device)
        if capability < (7, 5):
            return f"it needs compute capability 7.5 (Turing) or newer, {logits.device} has {major}.{minor}"
        if capability < (8, 0) and logits.dtype == torch.bfloat16:
            return f"bfloat16 needs compute capability 8.0 (Ampere) or newer, {logits.device} has {major}.{minor}; float16 runs"
    return gpu.why_no_triton()


def make_plan(call: Call) -> Plan:
    """What was measured on the call's device, or choices read off the machine code that the static gate builds."""
    target = "none" if call.target is None else "hard" if call.hard else "soft"
    key = {"bits": str(8 * call.logits.dtype.itemsize), "views": str(call.num_views), "target": target, "classes": call.classes, "samples": call.batch}
    plan = _careful_plan(call)
    return tuned.lookup("jsd", "tiled" if plan.tiled else "row", key, plan, _candidates, call.logits.device)


def _careful_plan(call: Call) -> Plan:
    block = max(16, 1 << (call.classes - 1).bit_length())
    if block * call.num_views > _IN_REGISTERS and block > _TILE:
        return Plan(True, _TILE, 8)
    # eight numbers of each view a thread: two 16-byte accesses in float32, one in half precision
    return Plan(False, block, min(16, max(1, block // 256)))


def _candidates(plan: Plan) -> list[Plan]:
    """The block of a row is given by the class count."""
    blocks = (1024, 2048, 4096) if plan.tiled else (plan.block,)
    return [plan._replace(block=block, num_warps=warps) for block in blocks for warps in (1, 2, 4, 8, 16)]


def forward(call: Call, with_gradient: bool, plan: Plan | None = None) -> tuple[Tensor, Tensor]:
    losses = torch.empty(call.batch, dtype=torch.float32, device=call.logits.device)
    gradient = torch.empty(call.logits.shape if with_gradient else (0,), dtype=call.logits.dtype, device=call.logits.device)
    _launch(call, plan or make_plan(call), None, losses, gradient if with_gradient else None)
    return losses if call.reduction == "none" else losses.sum(), gradient


def backward(call: Call, grad_loss: Tensor, plan: Plan | None = None) -> Tensor:
    gradient = torch.empty(call.logits.shape, dtype=call.logits.dtype, device=call.logits.device)
    _launch(call, plan or make_plan(call), grad_loss, None, gradient)
    return gradient


def _launch(call: Call, plan: Plan, grad_loss: Tensor | None, losses: Tensor | None, gradient: Tensor | None) -> None:
    from vtkernels.ops.jsd import triton_kernels as kernels

    if not call.batch:
        return
    logits = call.logits if call.logits.stride(1) == 1 else call.logits.contiguous()
    target = None if call.target is None else call.target.contiguous()
    # any tensor stands in for an absent one, which the kernel does not touch
    tensors = [logits if tensor is None else tensor for tensor in (target, losses, gradient, grad_loss)]
    grad_stride = grad_loss.stride(0) if grad_loss is not None and grad_loss.dim() else 0
    kernel = kernels.jsd_tiled_kernel if plan.tiled else kernels.jsd_row_kernel
    with gpu.on(logits.device):
        kernel[(call.batch,)](
            logits, *tensors, call.batch, grad_stride, call.weight, 1.0 - call.label_smoothing, call.label_smoothing / call.classes, call.share,
            LOSS=losses is not None, GRADIENT=gradient is not None, GIVEN=grad_loss is not None, **_constants(call, logits, plan),
        )  # fmt: skip


def _constants(call: Call, logits: Tensor, plan: Plan) -> dict[str, Any]:
    return {
        "CLASSES": call.classes,
        "STRIDE": logits.stride(0),
        "BLOCK": plan.block,
        "VIEWS": call.num_views,
        "WEIGHTS": call.weights,
        "TARGET": "none" if call.target is None else "hard" if call.hard else "soft",
        "SMOOTH": call.target is not None and call.label_smoothing > 0,
        "num_warps": plan.num_warps,
        # Triton is about to switch the contraction of multiply and add off by default
        "enable_fp_fusion": True,
    }


BACKEND = Backend("triton", why_not, {"forward": forward, "backward": backward})
