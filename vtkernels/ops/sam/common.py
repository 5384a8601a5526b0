"""What every backend of the multi-tensor ops shares: the calls after validation, and the layout the kernels walk."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtkernels._core import check


class SquareSum(NamedTuple):
    params: list[Tensor]
    grads: list[Tensor]
    adaptive: list[bool]
    eta: float


class Perturb(NamedTuple):
    params: list[Tensor]
    grads: list[Tensor]
    backups: list[Tensor]
    square_sum: Tensor | None  # of all gradients there are, where some are not in this call
    rho: list[float]
    adaptive: list[bool]
    eta: float
    eps: float
    grad_scale: Tensor | None
    found_inf: Tensor | None


class Restore(NamedTuple):
    params: list[Tensor]
    backups: list[Tensor]


class SgdStep(NamedTuple):
    params: list[Tensor]
    grads: list[Tensor]
    momentum_buffers: list[Tensor]  # none without momentum
    backups: list[Tensor]  # none where the parameters were not perturbed
    lr: list[float]
    weight_decay: list[float]
    momentum: float
    nesterov: bool
    decoupled: bool
    maximize: bool
    grad_scale: Tensor | None
    found_inf: Tensor | None


class AdamWStep(NamedTuple):
    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    backups: list[Tensor]  # none where the parameters were not perturbed
    lr: list[float]
    weight_decay: list[float]
    beta1: float
    beta2: float
    eps: float
    decoupled: bool
    maximize: bool
    grad_scale: Tensor | None
    found_inf: Tensor | None


# lists that are written side by side with the parameters, or read for it; gradients may be copied into their layout first
COMPANIONS = ("backups", "momentum_buffers", "exp_avgs", "exp_avg_sqs")


def why_not_flat(call: Any) -> str | None:
    """Why the tensors of a call cannot be walked as flat arrays, side by side; None if they can."""
    if _all_contiguous(call.params) and all(_all_contiguous(getattr(call, name, ())) for name in COMPANIONS):
        return None
    for i, param in enumerate(call.params):
        if not (param.is_contiguous() or is_dense(param)):
            return f"it walks tensors as flat arrays, params[{i}] has gaps or overlaps (shape {list(param.shape)}, strides {list(param.stride())})"
    for name in COMPANIONS:
        for i, (param, tensor) in enumerate(zip(call.params, getattr(call, name, ()), strict=False)):
            if not same_layout(param, tensor):
                return f"it walks tensors as flat arrays, {name}[{i}] has strides {list(tensor.stride())}, params[{i}] {list(param.stride())}"
    return None


def _all_contiguous(tensors: Sequence[Tensor]) -> bool:
    # the usual case: hundreds of tensors are looked at in every step
    return all(tensor.is_contiguous() for tensor in tensors)


def is_dense(tensor: Tensor) -> bool:
    """Its elements fill a stretch of memory without gaps or overlaps, in some order of the dimensions."""
    return torch.ops.aten.is_non_overlapping_and_dense.default(tensor)


def same_layout(a: Tensor, b: Tensor) -> bool:
    return (a.is_contiguous() and b.is_contiguous()) or a.stride() == b.stride()


def flat_grads(call: Any) -> list[Tensor]:
    """The gradients, those of another layout than their parameters copied into it."""
    if _all_contiguous(call.params) and _all_contiguous(call.grads):
        return call.grads
    return [grad if same_layout(param, grad) else torch.empty_like(param).copy_(grad) for param, grad in zip(call.params, call.grads, strict=True)]


def refuse_shared(op: str, call: Any) -> None:
    """A backup that is its parameter, or a view of it as `param.data` is, would save nothing."""
    for i, (param, backup) in enumerate(zip(call.params, call.backups, strict=True)):
        # empty tensors, and those without numbers, lie nowhere
        if param.data_ptr() == backup.data_ptr() != 0 and param.numel():
            check.fail(op, "backups", "be tensors of their own", f"the memory of params[{i}] as backups[{i}]", "make them with torch.empty_like(param)")


def written(*lists: list[Tensor]) -> None:
    """Tell autograd that a kernel has written: a graph that saved the old values must not be run backward."""
    for tensors in lists:
        torch.autograd.graph.increment_version(tensors)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """float64 stays; everything else is computed in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def norm_dtype(params: list[Tensor]) -> torch.dtype:
    return torch.float64 if any(param.dtype == torch.float64 for param in params) else torch.float32


# ---- validation --------------------------------------------------------------------------------------------------------


def _kinds(tensors: list[Tensor]) -> list[tuple]:
    return [(tensor.shape, tensor.dtype, tensor.device, tensor.layout) for tensor in tensors]


def check_params(op: str, params: Any) -> list[Tensor]:
    params = listed(op, "params", params)
    if not params:
        check.fail(op, "params", "hold at least one tensor", "an empty list", "is the model frozen, or was a generator used up before?")
    device = params[0].device if isinstance(params[0], Tensor) else None
    for i, param in enumerate(params):
        if not isinstance(param, Tensor):
            check.fail(op, f"params[{i}]", "be a tensor", type(param).__name__, "", TypeError)
    if len(set(map(id, params))) != len(params):
        check.fail(
            op,
            "params",
            "hold each tensor once",
            f"{len(params)} of which {len(set(map(id, params)))} differ",
            "drop the repeated ones: each would be changed twice",
        )
    # a look at each kind that occurs, not at each tensor
    kinds = [(param.layout, param.dtype, param.device) for param in params]
    for kind in dict.fromkeys(kinds):
        i = kinds.index(kind)
        layout, dtype, where = kind
        if layout != torch.strided or dtype not in check.COMPUTED_DTYPES:
            _refuse_kind(op, f"params[{i}]", params[i])
        if where != device:
            check.fail(op, f"params[{i}]", f"be on the device of params[0] ({device})", where, "call the op once for each device")
    return params


def check_beside(op: str, name: str, tensors: Any, params: list[Tensor]) -> list[Tensor]:
    """A list with a tensor for each parameter: of its shape, dtype and device."""
    tensors = listed(op, name, tensors)
    if len(tensors) != len(params):
        check.fail(op, name, f"hold a tensor for each of the {len(params)} params", len(tensors), "leave out params without a gradient everywhere")
    if all(isinstance(tensor, Tensor) for tensor in tensors) and _kinds(tensors) == _kinds(params):
        return tensors
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        if not isinstance(tensor, Tensor):
            check.fail(op, f"{name}[{i}]", "be a tensor", type(tensor).__name__, "leave out params without a gradient everywhere", TypeError)
        if tensor.layout != torch.strided or tensor.dtype != param.dtype:
            _refuse_kind(op, f"{name}[{i}]", tensor, param)
        if tensor.shape != param.shape:
            check.fail(op, f"{name}[{i}]", f"have the shape of params[{i}], {list(param.shape)}", list(tensor.shape))
        if tensor.device != param.device:
            check.fail(op, f"{name}[{i}]", f"be on the device of params[{i}] ({param.device})", tensor.device, f"try {name}[{i}].to(params[{i}].device)")
    return tensors


def _refuse_kind(op: str, name: str, tensor: Tensor, param: Tensor | None = None) -> None:
    if tensor.layout != torch.strided:
        check.fail(op, name, "be dense", f"{tensor.layout}", "build nn.Embedding with sparse=False, or call to_dense()", TypeError)
    if tensor.is_complex():
        check.fail(op, name, "be real", tensor.dtype, "keep complex parameters as torch.view_as_real", TypeError)
    check.check_floating(op, name, tensor)
    if param is not None:
        check.fail(op, name, f"have the dtype of its parameter, {param.dtype}", tensor.dtype, f"try {name}.to({str(param.dtype)})", TypeError)


def check_flag(op: str, name: str, value: Any, device: torch.device) -> None:
    """A number on the device, as GradScaler holds it."""
    if value is None:
        return
    check.check_tensor(op, name, value)
    if value.numel() != 1 or value.dtype != torch.float32:
        check.fail(op, name, "be a float32 tensor with one element", f"{value.dtype} {list(value.shape)}", "GradScaler makes it so", TypeError)
    if value.device != device:
        check.fail(op, name, f"be on the device of the params ({device})", value.device, f"try {name}.to(params[0].device)")


def per_tensor(op: str, name: str, value: Any, params: list[Tensor], kind: type) -> list:
    """One number for all tensors, or one for each, as a list."""
    if isinstance(value, (int, float)):
        return [kind(value)] * len(params)
    if not isinstance(value, Sequence) or not all(isinstance(v, (int, float)) for v in value):
        check.fail(op, name, f"be a {kind.__name__} or a list of them", repr(value), "", TypeError)
    if len(value) != len(params):
        check.fail(op, name, f"be one {kind.__name__} or one for each of the {len(params)} params", len(value))
    return [kind(v) for v in value]


def check_range(op: str, name: str, values: Sequence[float], low: float, high: float, hint: str = "") -> None:
    """low <= value < high for each; a NaN is not."""
    # the few different ones
    for value in dict.fromkeys(values):
        if not (isinstance(value, (int, float)) and low <= value < high):
            bounds = f"at least {low:g}" + (f" and below {high:g}" if high != float("inf") else " and finite")
            check.fail(op, name, f"be {bounds}", value, hint)


def listed(op: str, name: str, tensors: Any) -> list[Tensor]:
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        check.fail(op, name, "be a list of tensors", type(tensors).__name__, f"try list({name}) or [{name}]", TypeError)
    return list(tensors)
