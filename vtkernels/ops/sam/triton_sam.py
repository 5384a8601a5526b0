"""The kernels of SAM's own ops: sums of squares, the norm, the perturbation, the way back."""

import triton
import triton.language as tl

from vtkernels.ops.sam.triton_common import MARKED, array_of, copy_blocks, find_chunk, is_of, number_of, read, write

# A float32 sum of squares that is smaller, or not finite, may be float32's fault: gradients of 1e-12 stay above it
SMALLEST_SUM = tl.constexpr(1e-20)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def square_blocks(
    sums, place, first, last, count, marked, eta, ADAPTIVE: tl.constexpr, CODE: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Add the squares to `sums`, in its dtype."""
    grad_ptr = array_of(place, 1, CODE, WHOLE)
    if ADAPTIVE:
        # of tensors that are not stretched only the gradient is read
        param_ptr = tl.where(marked, array_of(place, 0, CODE, WHOLE), grad_ptr)
    for block in range(first, last):
        i = block * BLOCK + tl.arange(0, BLOCK)
        g = read(grad_ptr, i, count, WHOLE).to(tl.float32)
        if ADAPTIVE:
            w = read(param_ptr, i, count, WHOLE).to(tl.float32)
            g = tl.where(marked, (tl.abs(w) + eta) * g, g)
        g = g.to(sums.dtype)
        sums += g * g
    return sums


@triton.jit(do_not_specialize=["tensors"])
def sam_square_sum_kernel(
    table_ptr, sums_ptr, tensors, eta, COLUMNS: tl.constexpr, KINDS: tl.constexpr, ADAPTIVE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The sum of the squares of each chunk, in float64. Lists: params, grads."""
    place, flags, count, whole, blocks = find_chunk(table_ptr, tensors, COLUMNS, BLOCK)
    marked = (flags & MARKED) != 0
    total = tl.full((), 0.0, tl.float64)
    for CODE in tl.static_range(3):
        if is_of(flags, KINDS, CODE):
            sums = tl.zeros((BLOCK,), tl.float32)
            sums = square_blocks(sums, place, 0, whole, count, marked, eta, ADAPTIVE, CODE, True, BLOCK)
            sums = square_blocks(sums, place, whole, blocks, count, marked, eta, ADAPTIVE, CODE, False, BLOCK)
            total = tl.sum(sums.to(tl.float64))
            # also for zeros and for NaN, at the price of reading the chunk again
            if not ((total >= SMALLEST_SUM) & (total < INFINITY)):
                wide = tl.zeros((BLOCK,), tl.float64)
                total = tl.sum(square_blocks(wide, place, 0, blocks, count, marked, eta, ADAPTIVE, CODE, False, BLOCK))
    tl.store(sums_ptr + tl.program_id(0), total)


@triton.jit(do_not_specialize=["count"])
def sam_finish_kernel(
    sums_ptr, norm_ptr, state_ptr, grad_scale_ptr, found_inf_ptr, count, eps,
    PERTURB: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_FOUND_INF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program adds up the chunks' sums. Without PERTURB that is all, and the sum goes to `norm`.

    With it `state` gets 1 / (norm + eps), or 0 where there is no gradient at all, and whether the parameters may change.
    """
    sums = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(sums_ptr + i, mask=i < count, other=0.0)
    total = tl.sum(sums)
    if PERTURB:
        scale = tl.full((), 1.0, tl.float64)
        if HAS_SCALE:
            scale = tl.load(grad_scale_ptr).to(tl.float64)
        climbs = total < INFINITY
        if HAS_FOUND_INF:
            found = tl.where(climbs, tl.load(found_inf_ptr), 1.0)
            tl.store(found_inf_ptr, found)
            climbs = climbs & (found == 0.0)
        root = tl.sqrt(total)
        tl.store(norm_ptr, (root / scale).to(tl.float32))
        # scaled gradients have a scaled norm: their quotient is the same, if eps is scaled too
        tl.store(state_ptr, tl.where(total == 0.0, 0.0, 1.0 / (root + eps * scale)))
        tl.store(state_ptr + 1, climbs.to(tl.float64))
    else:
        tl.store(norm_ptr, total)


@triton.jit
def perturb_blocks(
    place, first, last, count, factor, marked, eta, ADAPTIVE: tl.constexpr, CODE: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    param_ptr, grad_ptr, backup_ptr = array_of(place, 0, CODE, WHOLE), array_of(place, 1, CODE, WHOLE), array_of(place, 2, CODE, WHOLE)
    for block in range(first, last):
        i = block * BLOCK + tl.arange(0, BLOCK)
        old, g = read(param_ptr, i, count, WHOLE), read(grad_ptr, i, count, WHOLE).to(tl.float32)
        w = old.to(tl.float32)
        step = g * factor
        if ADAPTIVE:
            t = tl.where(marked, tl.abs(w) + eta, 1.0)
            # T^2 g may overflow where the step does not
            step = t * (t * step)
        write(backup_ptr, i, old, count, WHOLE)
        write(param_ptr, i, w + step, count, WHOLE)


@triton.jit(do_not_specialize=["tensors"])
def sam_perturb_kernel(
    table_ptr, numbers_ptr, state_ptr, tensors, eta, COLUMNS: tl.constexpr, KINDS: tl.constexpr, ADAPTIVE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Lists: params, grads, backups; numbers: rho."""
    place, flags, count, whole, blocks = find_chunk(table_ptr, tensors, COLUMNS, BLOCK)
    # a norm below float32's range makes a factor above it
    factor = tl.minimum(number_of(numbers_ptr, place, 3) * tl.load(state_ptr), 3.4e38).to(tl.float32)
    climbs = tl.load(state_ptr + 1) != 0.0
    marked = (flags & MARKED) != 0
    for CODE in tl.static_range(3):
        if is_of(flags, KINDS, CODE):
            if climbs:
                perturb_blocks(place, 0, whole, count, factor, marked, eta, ADAPTIVE, CODE, True, BLOCK)
                perturb_blocks(place, whole, blocks, count, factor, marked, eta, ADAPTIVE, CODE, False, BLOCK)
            else:
                copy_blocks(place, 2, 0, 0, whole, count, CODE, True, BLOCK)
                copy_blocks(place, 2, 0, whole, blocks, count, CODE, False, BLOCK)


@triton.jit(do_not_specialize=["tensors"])
def sam_restore_kernel(table_ptr, tensors, COLUMNS: tl.constexpr, KINDS: tl.constexpr, BLOCK: tl.constexpr):
    """Lists: params, backups."""
    place, flags, count, whole, blocks = find_chunk(table_ptr, tensors, COLUMNS, BLOCK)
    for CODE in tl.static_range(3):
        if is_of(flags, KINDS, CODE):
            copy_blocks(place, 0, 1, 0, whole, count, CODE, True, BLOCK)
            copy_blocks(place, 0, 1, whole, blocks, count, CODE, False, BLOCK)
