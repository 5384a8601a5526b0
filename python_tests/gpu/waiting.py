"""A device that is not there, for launchers to run on: `meta` tensors, Triton's launches intercepted, and whatever would wait for a GPU raises.

An op's Python kernel runs as the dispatcher would run it, with the launcher of the chosen backend. Tensors hold no numbers, so that
nothing can depend on one: no branch, no shape, no launch.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from python_tests.gpu import aot
from vtkernels._core.op import Op
from vtkernels.ops.sam import pointer_table

_ATEN = torch.ops.aten
# what returns a number, or a size, that only the device knows
_READS = {
    _ATEN._local_scalar_dense, _ATEN.item, _ATEN.equal, _ATEN.is_nonzero, _ATEN.nonzero, _ATEN.nonzero_static, _ATEN.masked_select,
    _ATEN._unique, _ATEN._unique2, _ATEN.unique_dim, _ATEN.unique_consecutive, _ATEN.bincount, _ATEN.repeat_interleave, _ATEN.allclose,
}  # fmt: skip


class Waits(Exception):
    """A host would wait for its device here."""


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait for the device, which `meta` stands for; runs an op's Python kernel instead of its shape function."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "vtkernels":
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        given = list(_tensors((args, kwargs)))
        if func.overloadpacket in _READS and any(x.is_meta for x in given):
            raise Waits(f"{func} reads from the device")
        if func.overloadpacket in (_ATEN.index, _ATEN.index_put, _ATEN.index_put_) and any(
            x.is_meta and x.dtype in (torch.bool, torch.uint8) for x in given[1:]
        ):
            raise Waits(f"{func} counts a mask")
        out = func(*args, **kwargs)
        if func.overloadpacket in (_ATEN._to_copy, _ATEN.copy_) and len({x.is_meta for x in (*given, out)}) == 2:
            raise Waits(f"{func} copies between host and device")
        return out


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


@contextlib.contextmanager
def pretended_device(backend: str = "triton") -> Iterator[list[aot.Build]]:
    """Calls on `meta` tensors reach the backend's launchers; yields what they launch."""

    def select(op: Op, phase: str, asked: str, call: Any) -> Any:
        return op.backend(backend).phases[phase]

    def upload(words: torch.Tensor, device: torch.device) -> torch.Tensor:
        # on a GPU it is pinned, and nothing waits for it
        return torch.empty_like(words, device=device)

    with (
        aot._intercepted() as launched,
        mock.patch.object(Op, "select", select),
        mock.patch.object(pointer_table, "upload", upload),
        mock.patch.object(torch, "tensor", _made_here(torch.tensor)),
        mock.patch.object(torch, "as_tensor", _made_here(torch.as_tensor)),
        NoWaiting(),
    ):
        yield launched


def _made_here(make: Any) -> Any:
    """A tensor of host numbers on the device is a copy that the dispatcher does not show."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is not None and torch.device(device).type != "cpu":
            raise Waits(f"torch.{make.__name__}(..., device) copies from the host")
        return make(*args, **kwargs)

    return made
