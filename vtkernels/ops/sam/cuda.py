"""The multi-tensor ops on NVIDIA GPUs: the CUDA C++ kernels of csrc/sam, which take their table of pointers by value."""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core import gpu, native
from vtkernels._core.op import Backend
from vtkernels.ops.sam.common import AdamWStep, Perturb, Restore, SgdStep, SquareSum, flat_grads, why_not_flat

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# what fits into the 32 KB of a kernel's parameters: kMaxTensors of csrc/sam/cuda_table.cuh
MAX_TENSORS = 576


def why_not(phase: str, call: Any) -> str | None:
    device = call.params[0].device
    if device.type != "cuda":
        return f"it runs on CUDA devices, params are on {device}"
    major, minor = capability = gpu.capability(device)
    if capability < (8, 0):
        return f"it is compiled for compute capability 8.0 (Ampere) and newer, {device} has {major}.{minor}"
    for i, param in enumerate(call.params):
        if param.dtype not in _DTYPES:
            return f"it computes in float32, bfloat16 and float16, params[{i}] is {param.dtype}"
    if len(call.params) > MAX_TENSORS:
        return f"its table holds at most {MAX_TENSORS} tensors, this call has {len(call.params)}"
    return why_not_flat(call) or native.why_missing() or why_not_built()


def why_not_built() -> str | None:
    if torch._C._dispatch_has_kernel_for_dispatch_key("vtkernels_native::sam_restore", "CUDA"):
        return None
    return "the native library was built without CUDA kernels; install nvcc (12.8 or newer) and reinstall with VTKERNELS_BUILD=cuda"


def square_sum(call: SquareSum) -> Tensor:
    total = torch.empty((), dtype=torch.float64, device=call.params[0].device)
    torch.ops.vtkernels_native.sam_square_sum.default(call.params, flat_grads(call), list(map(int, call.adaptive)), call.eta, total)
    return total


def perturb(call: Perturb) -> Tensor:
    norm = torch.empty((), dtype=torch.float32, device=call.params[0].device)
    adaptive = list(map(int, call.adaptive))
    torch.ops.vtkernels_native.sam_perturb.default(*call._replace(grads=flat_grads(call), adaptive=adaptive), norm)
    return norm


def restore(call: Restore) -> None:
    torch.ops.vtkernels_native.sam_restore.default(*call)


def sgd(call: SgdStep) -> None:
    torch.ops.vtkernels_native.sgd_step.default(*call._replace(grads=flat_grads(call)))


def adamw(call: AdamWStep) -> None:
    torch.ops.vtkernels_native.adamw_step.default(*call._replace(grads=flat_grads(call)))


SQUARE_SUM = Backend("cuda", why_not, {"forward": square_sum})
PERTURB = Backend("cuda", why_not, {"forward": perturb})
RESTORE = Backend("cuda", why_not, {"forward": restore})
SGD = Backend("cuda", why_not, {"forward": sgd})
ADAMW = Backend("cuda", why_not, {"forward": adamw})
