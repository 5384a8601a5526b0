"""Pairs on NVIDIA GPUs: the launchers of the Triton kernels. Triton itself is imported by the first call that runs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtkernels._core import gpu, tuned
from vtkernels._core.op import Backend
from vtkernels.ops.drloc_pairs.common import Call, Scatter

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Plan(NamedTuple):
    """How a kernel is launched."""

    items: int  # of the forward: pairs of a program; of the backward: references of an image that are looked through at once
    channels: int  # of a program
    num_warps: int


# 256 channels: 16 bytes or more for each lane of a warp
_FORWARD, _BACKWARD = Plan(4, 256, 4), Plan(256, 256, 1)


def why_not(phase: str, call: Call | Scatter) -> str | None:
    main = call.main
    if not (main.device.type == "cuda" or main.device.type == "cpu" and gpu.interpreted()):
        return f"it runs on CUDA devices, features are on {main.device}"
    if main.dtype not in _DTYPES:
        return f"it copies float32, bfloat16 and float16, features are {main.dtype}"
    if main.device.type == "cuda":
        major, minor = capability = gpu.capability(main.device)
        if capability < (7, 5):
            return f"it needs compute capability 7.5 (Turing) or newer, {main.device} has {major}.{minor}"
        if main.dtype == torch.bfloat16 and capability < (8, 0):
            return f"bfloat16 needs compute capability 8.0 (Ampere) or newer, {main.device} has {major}.{minor}; float16 runs"
    return gpu.why_no_triton()


def forward(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    features = _dense_last(call.features)
    batch, height, width, channels = features.shape
    pairs = features.new_empty(batch, call.num_pairs, 2 * channels)
    targets = features.new_empty(batch, call.num_pairs, 2, dtype=torch.float32)
    positions = features.new_empty(batch, call.num_pairs, 4, dtype=torch.int64)
    if not batch:
        return pairs, targets, positions
    from vtkernels.ops.drloc_pairs.triton_kernels import drloc_pairs_fwd_kernel as kernel

    total, plan = batch * call.num_pairs, _plan("forward", features, call.num_pairs)
    block = _block(channels, plan)
    given = positions if call.positions is None else call.positions.contiguous()
    with gpu.on(features.device):
        kernel[(-(-total // plan.items), -(-channels // block))](
            features, given, pairs, targets, positions, total, call.num_pairs, height, width, channels, *features.stride()[:3],
            call.seed, call.offset & 0xFFFFFFFF, (call.offset >> 32) & 0xFFFFFFFF,
            GIVEN=call.positions is not None, SIGNED=call.signed, NORMALIZE=call.normalize, BLOCK_P=plan.items, BLOCK_C=block, num_warps=plan.num_warps,
        )  # fmt: skip
    return pairs, targets, positions


def backward(call: Scatter) -> Tensor:
    grad_pairs = _dense_last(call.grad_pairs)
    batch, height, width, channels = call.shape
    grad = grad_pairs.new_empty(call.shape)
    if not batch:
        return grad
    from vtkernels.ops.drloc_pairs.triton_kernels import drloc_pairs_bwd_kernel as kernel

    references, plan = 2 * call.positions.shape[1], _plan("backward", grad, call.positions.shape[1])
    block = _block(channels, plan)
    with gpu.on(grad.device):
        kernel[(batch * height * width, -(-channels // block))](
            grad_pairs, call.positions.contiguous(), grad, references, height, width, channels, *grad_pairs.stride()[:2],
            BLOCK_M=min(_power_of_two(references), plan.items), BLOCK_C=block, num_warps=plan.num_warps,
        )  # fmt: skip
    return grad


def _dense_last(x: Tensor) -> Tensor:
    # clone, not contiguous(): that leaves an empty tensor's strides as they are
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


def _plan(phase: str, map_: Tensor, pairs: int) -> Plan:
    batch, height, width, channels = map_.shape
    key = {"bits": str(8 * map_.dtype.itemsize), "images": batch, "positions": height * width, "channels": channels, "pairs": pairs}
    return tuned.lookup("drloc_pairs", phase, key, _FORWARD if phase == "forward" else _BACKWARD, _candidates, map_.device)


def _candidates(plan: Plan) -> list[Plan]:
    items = (1, 2, 4, 8) if plan.items <= 8 else (32, 64, 256)
    return [Plan(count, channels, warps) for count in items for channels in (256, 512, 1024) for warps in (1, 2, 4, 8)]


def _block(channels: int, plan: Plan) -> int:
    return min(_power_of_two(channels), plan.channels)


def _power_of_two(size: int) -> Any:
    return 1 << (size - 1).bit_length()


BACKEND = Backend("triton", why_not, {"forward": forward, "backward": backward})
