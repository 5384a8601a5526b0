"""Large results of CPU kernels in memory that served before.

Beyond 32 MB glibc maps fresh pages for every allocation and unmaps them when it is freed: the page faults of a result then
cost many times its kernel. Here such memory goes back to a pool when the last tensor that uses it is gone, and serves the
next result of that size. When that is, torch itself says: a block is lent as the buffer that a storage was made from, and
the storage drops it when it dies. Views, saved tensors, whatever shares the storage keeps it, and so keeps the block.

`VTKERNELS_RECYCLE` is how many MB may lie idle, 0 to allocate as torch does. A recycled storage cannot be resized.
"""

import collections
import math
import mmap
import weakref

import torch
from torch import Tensor

from vtkernels._core import env

# glibc's own limit, above which it never keeps what is freed
SMALLEST = 32 << 20
_private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else None
# blocks that nobody uses, the one idle longest first; deques are safe between threads
_idle: collections.deque[mmap.mmap] = collections.deque()


def empty(shape: tuple[int, ...], dtype: torch.dtype, smallest: int = SMALLEST) -> Tensor:
    """torch.empty on the CPU; those of more than `smallest` bytes in recycled memory."""
    size = math.prod(shape) * dtype.itemsize
    if size <= smallest or _private is None or size > env.recycled_megabytes() << 20:
        return torch.empty(shape, dtype=dtype, device="cpu")
    block = _take(size) or _new(size)
    lease = memoryview(block)
    # not at exit: a tensor may live longer than the pool
    weakref.finalize(lease, _put_back, block).atexit = False
    result = torch.frombuffer(lease, dtype=dtype, count=math.prod(shape)).view(shape)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:
        # as torch.empty does, to show what a kernel forgets to write
        result.fill_(torch.nan)
    return result


def idle_bytes() -> int:
    return sum(map(len, tuple(_idle)))


def clear() -> None:
    """Give all idle memory back to the system."""
    _idle.clear()


def _take(size: int) -> mmap.mmap | None:
    for block in tuple(_idle):
        if len(block) == size:
            try:
                _idle.remove(block)
            except ValueError:  # another thread was faster
                continue
            return block
    return None


def _new(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, size, **_private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _put_back(block: mmap.mmap) -> None:
    _idle.append(block)
    while idle_bytes() > env.recycled_megabytes() << 20:
        try:
            _idle.popleft()
        except IndexError:
            return
