"""The multi-tensor ops on the CPU: the C++ kernels of csrc/sam."""

from typing import Any

import torch
from torch import Tensor

from vtkernels._core import native
from vtkernels._core.op import Backend
from vtkernels.ops.sam.common import AdamWStep, Perturb, Restore, SgdStep, SquareSum, flat_grads, norm_dtype, why_not_flat

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(phase: str, call: Any) -> str | None:
    first = call.params[0]
    if first.device.type != "cpu":
        return f"it runs on the CPU, params are on {first.device}"
    other = {param.dtype for param in call.params}.difference(_DTYPES)
    if other:
        return f"it computes in float32, bfloat16 and float16, one of params is {other.pop()}"
    return why_not_flat(call) or native.why_missing()


def square_sum(call: SquareSum) -> Tensor:
    total = native.empty((), torch.float64)
    torch.ops.vtkernels_native.sam_square_sum.default(call.params, flat_grads(call), list(map(int, call.adaptive)), call.eta, total)
    return total


def perturb(call: Perturb) -> Tensor:
    norm = native.empty((), norm_dtype(call.params))
    torch.ops.vtkernels_native.sam_perturb.default(
        call.params,
        flat_grads(call),
        call.backups,
        call.square_sum,
        call.rho,
        list(map(int, call.adaptive)),
        call.eta,
        call.eps,
        call.grad_scale,
        call.found_inf,
        norm,
    )
    return norm


def restore(call: Restore) -> None:
    torch.ops.vtkernels_native.sam_restore.default(call.params, call.backups)


def sgd(call: SgdStep) -> None:
    torch.ops.vtkernels_native.sgd_step.default(*call._replace(grads=flat_grads(call)))


def adamw(call: AdamWStep) -> None:
    torch.ops.vtkernels_native.adamw_step.default(*call._replace(grads=flat_grads(call)))


SQUARE_SUM = Backend("cpu", why_not, {"forward": square_sum})
PERTURB = Backend("cpu", why_not, {"forward": perturb})
RESTORE = Backend("cpu", why_not, {"forward": restore})
SGD = Backend("cpu", why_not, {"forward": sgd})
ADAMW = Backend("cpu", why_not, {"forward": adamw})
