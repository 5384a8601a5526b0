"""Limits on gradients. Unscale them first under a GradScaler, and call once on the sum of accumulated micro-batches."""

from collections.abc import Iterable

import torch
from torch import Tensor

from vtkernels._core import check
from vtkernels.optim.shards import local


def clip_grad_norm_(params: Iterable[Tensor], max_norm: float, *, only_above: bool = False) -> Tensor:
    """Limit the norm of all gradients together; returns what it was, as a tensor on the device.

    Times `min(1, max_norm / (norm + 1e-6))` as in torch. With `only_above` as in JAX codes: times `max_norm / norm` where the norm
    is at least `max_norm`, else untouched.
    """
    _check_limit("clip_grad_norm_", "max_norm", max_norm)
    params = [param for param in params if param.grad is not None]
    if not params:
        return torch.zeros(())
    if not only_above:
        return _whole(torch.nn.utils.clip_grad_norm_(params, max_norm))
    norm = _whole(torch.nn.utils.get_total_norm([param.grad for param in params]))
    factor = torch.where(norm >= max_norm, max_norm / norm, 1.0)
    for device, grads in _by_device([param.grad for param in params]).items():
        torch._foreach_mul_(grads, factor.to(device))
    return norm


def clip_grad_value_(params: Iterable[Tensor], limit: float) -> None:
    """Limit each element of the gradients to -limit .. limit."""
    _check_limit("clip_grad_value_", "limit", limit)
    params = [param for param in params if param.grad is not None]
    if params:
        torch.nn.utils.clip_grad_value_(params, limit)


@torch.no_grad()
def clip_grad_adaptive_(params: Iterable[Tensor], limit: float = 0.01, *, eps: float = 1e-3, exclude: Iterable[Tensor] | set[int] = ()) -> None:
    """Limit the gradient of each unit to `limit` times the norm of its weights (adaptive gradient clipping, Brock et al., 2021).

    A unit is a row of a matrix, a filter of a convolution, or a whole tensor of one dimension.

    Args:
        params: parameters.
        limit: longest gradient over the weights' norm.
        eps: the weights' norm is taken to be at least that.
        exclude: parameters, or their ids, that are left alone: those of the head (`head_parameters(model)`).
    """
    _check_limit("clip_grad_adaptive_", "limit", limit)
    left_out = {entry if isinstance(entry, int) else id(entry) for entry in exclude}
    for param in params:
        if param.grad is None or id(param) in left_out or not param.numel():
            continue
        longest = limit * _unit_norms(param).clamp(min=eps)
        norms = _unit_norms(param.grad)
        # a norm that is not finite is left for the scaler to find
        scale = torch.where(norms < longest, 1.0, longest / norms.clamp(min=1e-6))
        # in half precision the scale itself may be below the smallest number
        param.grad.copy_(param.grad.to(scale.dtype) * scale)


def _unit_norms(tensor: Tensor) -> Tensor:
    wide = torch.promote_types(tensor.dtype, torch.float32)
    dims = None if tensor.ndim <= 1 else tuple(range(1, tensor.ndim))
    return torch.linalg.vector_norm(tensor, dim=dims, keepdim=tensor.ndim > 1, dtype=wide)


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _by_device(tensors: list[Tensor]) -> dict[torch.device, list[Tensor]]:
    found: dict[torch.device, list[Tensor]] = {}
    for tensor in local(tensors):
        found.setdefault(tensor.device, []).append(tensor)
    return found


def _check_limit(function: str, name: str, value: float) -> None:
    if not value > 0:
        check.fail(function, name, "be positive", value, "leave the call out to clip nothing")
