"""Lists of tensors as one table on the device, so that a kernel needs one launch however many tensors there are.

The table is one array of int64, column by column, a column holding one word for each tensor:

    elements | flags | one address column for each list | one float64 column for each list of numbers | chunk map

The chunk map has a word for each chunk of CHUNK elements: the tensor in the upper half, the chunk's number within it in
the lower one. Tensors without elements have no chunk.
"""

import functools
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Two thousand of them keep a large GPU busy for several rounds on 22 M parameters, and each still moves enough bytes
# to hide the three dependent loads it starts with
CHUNK = 8192

# flags of a tensor: the place of its dtype among these, in the bits of KIND, and two more bits
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KIND = 3
ALIGNED = 4
MARKED = 8

_RESERVED_WORDS = 1 << 17
# of this many tables like the last one, of which a captured step takes two
_RESERVED_TABLES = 8
_reserve: list[Tensor] = []
_captured: list[tuple[Tensor, Tensor]] = []


class PointerTable(NamedTuple):
    words: Tensor
    tensors: int
    # all columns before the chunk map
    columns: int
    chunks: int
    # bit i: a tensor of DTYPES[i] is there
    kinds: int

    @property
    def numbers(self) -> Tensor:
        """The same memory, for the columns of numbers."""
        return self.words.view(torch.float64)


def pointer_table(
    lists: Sequence[list[Tensor]], numbers: Sequence[Sequence[float]] = (), marked: Sequence[bool] = (), beside: Sequence[list[Tensor]] = ()
) -> PointerTable:
    """The table of `lists`, walked side by side, with the single numbers `beside` them; cached by addresses and values.

    `marked` sets a flag of the tensor's own.
    """
    device = lists[0][0].device
    arguments = (
        device,
        tuple(map(Tensor.numel, lists[0])),
        tuple([tensor.dtype for tensor in lists[0]]),
        tuple(marked),
        tuple([tuple(map(Tensor.data_ptr, tensors)) for tensors in lists]),
        tuple([tuple(map(Tensor.data_ptr, tensors)) for tensors in beside]),
        tuple(map(tuple, numbers)),
    )
    if device.type != "cuda":
        return _made(0, *arguments)
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            # a graph copies the table anew in each replay, from where it lies now: nobody may write there, ever
            return _made.__wrapped__(0, *arguments)
        # memory of one stream is not to be read on another without waiting
        table = _made(torch.cuda.current_stream().cuda_stream, *arguments)
        _keep_reserve(table.words.numel())
        return table


@functools.lru_cache(maxsize=32)
def _made(
    stream: int,
    device: torch.device,
    sizes: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    marked: tuple[bool, ...],
    addresses: tuple[tuple[int, ...], ...],
    beside: tuple[tuple[int, ...], ...],
    numbers: tuple[tuple[float, ...], ...],
) -> PointerTable:
    kinds = [DTYPES.index(dtype) for dtype in dtypes]
    words = array("q", sizes)
    for kind, mark, *places in zip(kinds, marked or (False,) * len(sizes), *addresses, strict=True):
        words.append(kind + ALIGNED * all(place % 16 == 0 for place in places) + MARKED * mark)
    for column in addresses + beside:
        words.extend(column)
    for column in numbers:
        words.frombytes(array("d", column).tobytes())
    columns, chunks = torch.frombuffer(words, dtype=torch.int64), chunk_map(sizes)
    there = upload(torch.cat((columns, chunks)), device)
    return PointerTable(there, len(sizes), len(columns) // len(sizes), len(chunks), sum(1 << kind for kind in set(kinds)))


@functools.lru_cache(maxsize=32)
def chunk_map(sizes: tuple[int, ...]) -> Tensor:
    # made here whatever torch's default device is
    counts = torch.tensor([-(-size // CHUNK) for size in sizes], device="cpu")
    tensor = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), counts)
    number = torch.arange(len(tensor), device="cpu") - (counts.cumsum(0) - counts)[tensor]
    return (tensor << 32) | number


def upload(words: Tensor, device: torch.device) -> Tensor:
    """One copy, which nothing waits for."""
    if device.type != "cuda":
        return words.to(device)
    capturing = torch.cuda.is_current_stream_capturing()
    pinned = _from_reserve(words.numel()) if capturing else _pinned(words.numel())
    there = pinned.copy_(words).to(device, non_blocking=True)
    if capturing:
        _captured.append((pinned, there))
    return there


def _keep_reserve(words: int) -> None:
    """Pinned memory for tables made during a capture, when none can be allocated: at least for some as long as this one."""
    wanted = max(_RESERVED_WORDS, _RESERVED_TABLES * words)
    if not _reserve or _reserve[0].numel() < wanted // 2:
        _reserve[:] = [_pinned(wanted)]


def _pinned(words: int) -> Tensor:
    return torch.empty(words, dtype=torch.int64, device="cpu", pin_memory=True)


def _from_reserve(count: int) -> Tensor:
    if not _reserve or _reserve[0].numel() < count:
        raise RuntimeError("the first call of a multi-tensor op cannot be captured in a CUDA graph; run the step once before the capture, as PyTorch asks for")
    taken, _reserve[0] = _reserve[0][:count], _reserve[0][count:]
    return taken
