"""The multi-tensor ops on NVIDIA GPUs: the launchers of the Triton kernels. Triton itself is imported by the first call that runs.

However many tensors there are, a call makes at most four launches, the copy of a new pointer table among them.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtkernels._core import gpu, tuned
from vtkernels._core.op import Backend
from vtkernels.ops.sam.common import AdamWStep, Perturb, Restore, SgdStep, SquareSum, flat_grads, why_not_flat
from vtkernels.ops.sam.pointer_table import DTYPES, PointerTable, pointer_table


class Plan(NamedTuple):
    """How a kernel that walks the chunks is launched. `block`: the elements a program handles at once."""

    # Eight of each list in a thread: two 16-byte accesses in float32, one in half precision
    block: int = 1024
    num_warps: int = 4


_WALK = Plan()
_FINISH: dict[str, Any] = {"BLOCK": 4096, "num_warps": 16}
# A tensor for each thread: with two threads for one, the second might read the step that the first has advanced
_CORRECTIONS: dict[str, Any] = {"BLOCK": 128, "num_warps": 4}


def why_not(phase: str, call: Any) -> str | None:
    device = call.params[0].device
    if not (device.type == "cuda" or device.type == "cpu" and gpu.interpreted()):
        return f"it runs on CUDA devices, params are on {device}"
    for i, param in enumerate(call.params):
        if param.dtype not in DTYPES:
            return f"it computes in float32, bfloat16 and float16, params[{i}] is {param.dtype}"
    if device.type == "cuda":
        major, minor = capability = gpu.capability(device)
        if capability < (7, 5):
            return f"it needs compute capability 7.5 (Turing) or newer, {device} has {major}.{minor}"
        if capability < (8, 0) and any(param.dtype == torch.bfloat16 for param in call.params):
            return f"bfloat16 needs compute capability 8.0 (Ampere) or newer, {device} has {major}.{minor}; float16 runs"
    return why_not_flat(call) or gpu.why_no_triton()


def square_sum(call: SquareSum) -> Tensor:
    call = _flat(call)
    table = pointer_table([call.params, call.grads], marked=call.adaptive)
    total = torch.empty((), dtype=torch.float64, device=table.words.device)
    with gpu.on(total.device):
        _finish(_chunk_sums(call, table), total, total, None)
    return total


def perturb(call: Perturb) -> Tensor:
    from vtkernels.ops.sam.triton_sam import sam_perturb_kernel as kernel

    call = _flat(call)
    table = pointer_table([call.params, call.grads, call.backups], [call.rho], call.adaptive)
    norm = torch.empty((), dtype=torch.float32, device=table.words.device)
    state = torch.empty(2, dtype=torch.float64, device=norm.device)
    with gpu.on(norm.device):
        _finish(_chunk_sums(call, table) if call.square_sum is None else call.square_sum.reshape(1), norm, state, call)
        if table.chunks:
            kernel[(table.chunks,)](table.words, table.numbers, state, table.tensors, call.eta, ADAPTIVE=any(call.adaptive), **_walk("perturb", table))
    return norm


def restore(call: Restore) -> None:
    from vtkernels.ops.sam.triton_sam import sam_restore_kernel as kernel

    table = pointer_table([call.params, call.backups])
    if table.chunks:
        with gpu.on(table.words.device):
            kernel[(table.chunks,)](table.words, table.tensors, **_walk("restore", table))


def sgd(call: SgdStep) -> None:
    from vtkernels.ops.sam.triton_steps import sgd_step_kernel as kernel

    call = _flat(call)
    lists = [call.params, call.grads, call.momentum_buffers, call.backups]
    table = pointer_table([tensors for tensors in lists if tensors], _rates(call))
    if table.chunks:
        with gpu.on(table.words.device):
            kernel[(table.chunks,)](
                table.words, table.numbers, *_flags(call, table), table.tensors, call.momentum, _sign(call),
                MOMENTUM=bool(call.momentum), NESTEROV=call.nesterov, **_given(call), BACKUPS=bool(call.backups), **_walk("sgd", table),
            )  # fmt: skip


def adamw(call: AdamWStep) -> None:
    from vtkernels.ops.sam.triton_steps import adamw_corrections_kernel, adamw_step_kernel

    call = _flat(call)
    lists = [call.params, call.grads, call.exp_avgs, call.exp_avg_sqs, *([call.backups] if call.backups else [])]
    table = pointer_table(lists, _rates(call), beside=[call.steps])
    corrections = torch.empty(2, table.tensors, dtype=torch.float32, device=table.words.device)
    scale, found_inf = _flags(call, table)
    with gpu.on(table.words.device):
        adamw_corrections_kernel[(-(-table.tensors // _CORRECTIONS["BLOCK"]),)](
            table.words, table.numbers, corrections, found_inf, table.tensors, _log2(call.beta1), _log2(call.beta2),
            STEPS=len(lists), HAS_FOUND_INF=call.found_inf is not None, **_CORRECTIONS,
        )  # fmt: skip
        if table.chunks:
            adamw_step_kernel[(table.chunks,)](
                table.words, table.numbers, corrections, scale, found_inf, table.tensors, call.beta2, 1 - call.beta1, 1 - call.beta2, call.eps, _sign(call),
                **_given(call), BACKUPS=bool(call.backups), **_walk("adamw", table),
            )  # fmt: skip


def _flat(call: Any) -> Any:
    """The call with gradients in the layout of their parameters. To be held until everything is launched: addresses keep nothing alive."""
    return call._replace(grads=flat_grads(call))


def _chunk_sums(call: SquareSum | Perturb, table: PointerTable) -> Tensor:
    from vtkernels.ops.sam.triton_sam import sam_square_sum_kernel as kernel

    sums = torch.empty(table.chunks, dtype=torch.float64, device=table.words.device)
    if table.chunks:
        kernel[(table.chunks,)](table.words, sums, table.tensors, call.eta, ADAPTIVE=any(call.adaptive), **_walk("square_sum", table))
    return sums


def _finish(sums: Tensor, norm: Tensor, state: Tensor, call: Perturb | None) -> None:
    from vtkernels.ops.sam.triton_sam import sam_finish_kernel as kernel

    # any tensor stands in for an absent one, which the kernel does not touch
    flags, given, eps = (norm, norm), {"HAS_SCALE": False, "HAS_FOUND_INF": False}, 0.0
    if call is not None:
        flags, given, eps = tuple(norm if flag is None else flag for flag in (call.grad_scale, call.found_inf)), _given(call), call.eps
    kernel[(1,)](sums, norm, state, *flags, sums.numel(), eps, PERTURB=call is not None, **given, **_FINISH)


def _walk(kernel: str, table: PointerTable) -> dict[str, Any]:
    key = {"dtypes": "+".join(str(dtype).removeprefix("torch.") for i, dtype in enumerate(DTYPES) if table.kinds >> i & 1), "chunks": table.chunks}
    plan = tuned.lookup("sam", kernel, key, _WALK, _candidates, table.words.device)
    # Triton is about to switch the contraction of multiply and add off by default
    return {"COLUMNS": table.columns, "KINDS": table.kinds, "BLOCK": plan.block, "num_warps": plan.num_warps, "enable_fp_fusion": True}


def _candidates(plan: Plan) -> list[Plan]:
    return [Plan(block, warps) for block in (512, 1024, 2048, 4096) for warps in (2, 4, 8)]


def _flags(call: SgdStep | AdamWStep, table: PointerTable) -> tuple[Tensor, ...]:
    return tuple(table.numbers if flag is None else flag for flag in (call.grad_scale, call.found_inf))


def _given(call: Perturb | SgdStep | AdamWStep) -> dict[str, bool]:
    return {"HAS_SCALE": call.grad_scale is not None, "HAS_FOUND_INF": call.found_inf is not None}


def _rates(call: SgdStep | AdamWStep) -> list[list[float]]:
    """Learning rate, what the weights are multiplied by, what of them is added to the gradient."""
    if call.decoupled:
        decay = [1.0 - lr * weight_decay for lr, weight_decay in zip(call.lr, call.weight_decay, strict=True)]
        return [call.lr, decay, [0.0] * len(decay)]
    return [call.lr, [1.0] * len(call.lr), call.weight_decay]


def _sign(call: SgdStep | AdamWStep) -> float:
    return -1.0 if call.maximize else 1.0


def _log2(beta: float) -> float:
    return math.log2(beta) if beta else -math.inf


SQUARE_SUM = Backend("triton", why_not, {"forward": square_sum})
PERTURB = Backend("triton", why_not, {"forward": perturb})
RESTORE = Backend("triton", why_not, {"forward": restore})
SGD = Backend("triton", why_not, {"forward": sgd})
ADAMW = Backend("triton", why_not, {"forward": adamw})
