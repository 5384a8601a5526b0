"""Long vectors kept as lists of tensors: a few launches however many tensors there are, and nothing waits for the device."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtkernels.ops.sam import sgd_step_
from vtkernels.optim import shards


class Products(NamedTuple):
    xy: Tensor
    xx: Tensor
    yy: Tensor


def products(params: list[Tensor], xs: list[Tensor], ys: list[Tensor], backend: str) -> Products:
    """Scalar products over all tensors, of sharded ones over all processes; in float64, not finite if any element is not.

    2 <x, y> = |x|^2 + |y|^2 - |x - y|^2: gradients of two passes are much alike, their difference is small and cannot overflow.
    """
    xx, yy, apart = (square_sum(params, vector, backend) for vector in (xs, ys, plus(xs, ys, -1.0)))
    return Products((xx + yy - apart) / 2, xx, yy)


def square_sum(params: list[Tensor], xs: list[Tensor], backend: str) -> Tensor:
    """|x|^2 in float64."""
    return shards.square_sum(params, xs, [False] * len(xs), [0.0] * len(xs), backend)


def plus(xs: list[Tensor], ys: list[Tensor], factor: Tensor | float) -> list[Tensor]:
    """x + factor * y, as new tensors."""
    sums: list[Tensor] = [None] * len(xs)
    for members in _alike(xs):
        part = torch._foreach_mul([ys[i] for i in members], _for(xs[members[0]], factor))
        torch._foreach_add_(part, [xs[i] for i in members])
        for i, tensor in zip(members, part, strict=True):
            sums[i] = tensor
    return sums


def add_(xs: list[Tensor], ys: list[Tensor], factor: Tensor | float) -> None:
    """x += factor * y, of sharded tensors the part that lies here."""
    xs, ys = shards.local(xs), shards.local(ys)
    for members in _alike(xs):
        torch._foreach_add_([xs[i] for i in members], torch._foreach_mul([ys[i] for i in members], _for(xs[members[0]], factor)))


def scale_(xs: list[Tensor], factor: Tensor | float) -> None:
    """x *= factor."""
    xs = shards.local(xs)
    for members in _alike(xs):
        torch._foreach_mul_([xs[i] for i in members], _for(xs[members[0]], factor))


def copy_(xs: list[Tensor], ys: list[Tensor]) -> None:
    """x = y."""
    torch._foreach_copy_(shards.local(xs), shards.local(ys))


def blend_(xs: list[Tensor], ys: list[Tensor], weights: Sequence[float], found_inf: Tensor, grad_scale: Tensor | None, backend: str) -> None:
    """x += weight * (y / grad_scale - x), each with its weight; nothing where `found_inf` is not 0."""
    # this is what SGD does that climbs and whose weights decay to 0 at rate 1: x *= 1 - weight, then x += weight * y
    options = {"lr": weights, "weight_decay": 1.0, "decoupled": True, "maximize": True}
    sgd_step_(shards.local(xs), shards.local(ys), found_inf=found_inf, grad_scale=grad_scale, backend=backend, **options)


def quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is."""
    return torch.where(b == 0, 0.0, a / b)


def _alike(tensors: list[Tensor]) -> Iterator[list[int]]:
    """Indices of tensors of one dtype, sharded over the same processes: foreach falls apart over mixed lists, or refuses them."""
    members: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        mesh = tensor.device_mesh if shards.is_sharded(tensor) else None
        members.setdefault((tensor.dtype, mesh), []).append(i)
    yield from members.values()


def _for(tensor: Tensor, factor: Tensor | float) -> Tensor | float:
    """A factor of the tensors' own dtype: with any other, too, foreach falls apart."""
    return factor.to(tensor.dtype) if isinstance(factor, Tensor) else factor
