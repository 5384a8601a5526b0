"""What the multi-tensor kernels share: a program takes one chunk of one tensor, which it finds in the pointer table.

Whole blocks of 16-byte aligned tensors are walked without a mask (WHOLE), which is what lets the compiler move 16 bytes
at once; the rest of a tensor, and all of an unaligned one, is walked with a mask. A kernel holds the code of those
dtypes only that are there: KINDS has a bit for each, CODE is the number of one.
"""

import triton
import triton.language as tl

from vtkernels.ops.sam import pointer_table

CHUNK = tl.constexpr(pointer_table.CHUNK)
KIND = tl.constexpr(pointer_table.KIND)
ALIGNED = tl.constexpr(pointer_table.ALIGNED)
MARKED = tl.constexpr(pointer_table.MARKED)
# of pointer_table.DTYPES
DTYPES = tl.constexpr((tl.float32, tl.bfloat16, tl.float16))
# columns of the table before those of the lists
FIRST = tl.constexpr(2)


@triton.jit
def find_chunk(table_ptr, tensors, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's place: (table, tensors, tensor, start of the chunk); the tensor's flags; the chunk's elements, whole blocks, blocks."""
    entry = tl.load(table_ptr + COLUMNS * tensors + tl.program_id(0))
    tensor = entry >> 32
    start = (entry & 0xFFFFFFFF) * CHUNK
    flags = tl.load(table_ptr + tensors + tensor).to(tl.int32)
    count = tl.minimum(tl.load(table_ptr + tensor) - start, CHUNK).to(tl.int32)
    whole = tl.where((flags & ALIGNED) != 0, count // BLOCK, 0)
    return (table_ptr, tensors, tensor, start), flags, count, whole, (count + BLOCK - 1) // BLOCK


@triton.jit
def is_of(flags, KINDS: tl.constexpr, CODE: tl.constexpr):
    """Whether the tensor has this dtype; nobody asks for a dtype that no tensor has."""
    return (flags & KIND) == CODE if (KINDS >> CODE) & 1 else False


@triton.jit
def array_of(place, LIST: tl.constexpr, CODE: tl.constexpr, WHOLE: tl.constexpr):
    """The chunk of a list's tensor."""
    table_ptr, tensors, tensor, start = place
    ptr = tl.load(table_ptr + (FIRST + LIST) * tensors + tensor).to(tl.pointer_type(DTYPES[CODE]))
    if WHOLE:
        ptr = tl.multiple_of(ptr, 16)
    return ptr + start


@triton.jit
def number_of(numbers_ptr, place, COLUMN: tl.constexpr):
    """A tensor's number; columns of numbers follow those of the lists."""
    return tl.load(numbers_ptr + (FIRST + COLUMN) * place[1] + place[2])


@triton.jit
def read(ptr, i, count, WHOLE: tl.constexpr):
    return tl.load(ptr + i) if WHOLE else tl.load(ptr + i, mask=i < count, other=0.0)


@triton.jit
def write(ptr, i, values, count, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(ptr + i, values.to(ptr.dtype.element_ty))
    else:
        tl.store(ptr + i, values.to(ptr.dtype.element_ty), mask=i < count)


@triton.jit
def copy_blocks(place, TO: tl.constexpr, FROM: tl.constexpr, first, last, count, CODE: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    to_ptr, from_ptr = array_of(place, TO, CODE, WHOLE), array_of(place, FROM, CODE, WHOLE)
    for block in range(first, last):
        i = block * BLOCK + tl.arange(0, BLOCK)
        write(to_ptr, i, read(from_ptr, i, count, WHOLE), count, WHOLE)
