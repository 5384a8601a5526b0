"""The kernels of the optimizer steps. Lists: params, grads, the optimizer's state, and backups where there are any.

Numbers of a tensor: the learning rate, what the weights are multiplied by, what of them is added to the gradient.
"""

import triton
import triton.language as tl

from vtkernels.ops.sam.triton_common import FIRST, array_of, copy_blocks, find_chunk, is_of, number_of, read, write


@triton.jit
def step_is_wanted(found_inf_ptr, HAS_FOUND_INF: tl.constexpr):
    wanted = tl.full((), 1, tl.int1)
    if HAS_FOUND_INF:
        wanted = tl.load(found_inf_ptr) == 0.0
    return wanted


@triton.jit
def gradient_factor(grad_scale_ptr, sign, HAS_SCALE: tl.constexpr):
    factor = sign
    if HAS_SCALE:
        factor = sign / tl.load(grad_scale_ptr)
    return factor


@triton.jit
def sgd_blocks(
    place, first, last, count, rates, momentum, factor,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, OLD: tl.constexpr, CODE: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lr, decay, weight_decay = rates
    param_ptr, grad_ptr, old_ptr = array_of(place, 0, CODE, WHOLE), array_of(place, 1, CODE, WHOLE), array_of(place, OLD, CODE, WHOLE)
    if MOMENTUM:
        buffer_ptr = array_of(place, 2, CODE, WHOLE)
    for block in range(first, last):
        i = block * BLOCK + tl.arange(0, BLOCK)
        w, g = read(old_ptr, i, count, WHOLE).to(tl.float32), read(grad_ptr, i, count, WHOLE).to(tl.float32)
        g = g * factor + weight_decay * w
        if MOMENTUM:
            b = momentum * read(buffer_ptr, i, count, WHOLE).to(tl.float32) + g
            write(buffer_ptr, i, b, count, WHOLE)
            if NESTEROV:
                g += momentum * b
            else:
                g = b
        write(param_ptr, i, w * decay - lr * g, count, WHOLE)


@triton.jit(do_not_specialize=["tensors"])
def sgd_step_kernel(
    table_ptr, numbers_ptr, grad_scale_ptr, found_inf_ptr, tensors, momentum, sign,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, BACKUPS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_FOUND_INF: tl.constexpr,
    COLUMNS: tl.constexpr, KINDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    LISTS: tl.constexpr = COLUMNS - FIRST - 3
    OLD: tl.constexpr = LISTS - 1 if BACKUPS else 0
    place, flags, count, whole, blocks = find_chunk(table_ptr, tensors, COLUMNS, BLOCK)
    rates = (
        number_of(numbers_ptr, place, LISTS).to(tl.float32),
        number_of(numbers_ptr, place, LISTS + 1).to(tl.float32),
        number_of(numbers_ptr, place, LISTS + 2).to(tl.float32),
    )
    factor = gradient_factor(grad_scale_ptr, sign, HAS_SCALE)
    wanted = step_is_wanted(found_inf_ptr, HAS_FOUND_INF)
    for CODE in tl.static_range(3):
        if is_of(flags, KINDS, CODE):
            if wanted:
                sgd_blocks(place, 0, whole, count, rates, momentum, factor, MOMENTUM, NESTEROV, OLD, CODE, True, BLOCK)
                sgd_blocks(place, whole, blocks, count, rates, momentum, factor, MOMENTUM, NESTEROV, OLD, CODE, False, BLOCK)
            elif BACKUPS:
                copy_blocks(place, 0, OLD, 0, whole, count, CODE, True, BLOCK)
                copy_blocks(place, 0, OLD, whole, blocks, count, CODE, False, BLOCK)


@triton.jit(do_not_specialize=["tensors"])
def adamw_corrections_kernel(
    table_ptr, numbers_ptr, corrections_ptr, found_inf_ptr, tensors, log2_beta1, log2_beta2,
    STEPS: tl.constexpr, HAS_FOUND_INF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Advance each tensor's number of steps, once; its two corrections of the bias, the learning rate in the first."""
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = tensor < tensors
    step_ptr = tl.load(table_ptr + (FIRST + STEPS) * tensors + tensor, mask=there, other=0).to(tl.pointer_type(tl.float32))
    lr = tl.load(numbers_ptr + (FIRST + STEPS + 1) * tensors + tensor, mask=there, other=0.0)
    before = tl.load(step_ptr, mask=there, other=0.0)
    step = before.to(tl.float64) + 1.0
    tl.store(step_ptr, tl.where(step_is_wanted(found_inf_ptr, HAS_FOUND_INF), step.to(tl.float32), before), mask=there)
    size = lr / (1.0 - tl.exp2(step * log2_beta1))
    root = 1.0 / tl.sqrt(1.0 - tl.exp2(step * log2_beta2))
    tl.store(corrections_ptr + tensor, size.to(tl.float32), mask=there)
    tl.store(corrections_ptr + tensors + tensor, root.to(tl.float32), mask=there)


@triton.jit
def adamw_blocks(
    place, first, last, count, rates, betas, eps, factor,
    OLD: tl.constexpr, CODE: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    size, root, decay, weight_decay = rates
    beta2, rest1, rest2 = betas
    param_ptr, grad_ptr, old_ptr = array_of(place, 0, CODE, WHOLE), array_of(place, 1, CODE, WHOLE), array_of(place, OLD, CODE, WHOLE)
    m_ptr, v_ptr = array_of(place, 2, CODE, WHOLE), array_of(place, 3, CODE, WHOLE)
    for block in range(first, last):
        i = block * BLOCK + tl.arange(0, BLOCK)
        w, g = read(old_ptr, i, count, WHOLE).to(tl.float32), read(grad_ptr, i, count, WHOLE).to(tl.float32)
        m, v = read(m_ptr, i, count, WHOLE).to(tl.float32), read(v_ptr, i, count, WHOLE).to(tl.float32)
        g = g * factor + weight_decay * w
        m += rest1 * (g - m)
        v = beta2 * v + rest2 * g * g
        write(m_ptr, i, m, count, WHOLE)
        write(v_ptr, i, v, count, WHOLE)
        write(param_ptr, i, w * decay - size * m / (tl.sqrt_rn(v) * root + eps), count, WHOLE)


@triton.jit(do_not_specialize=["tensors"])
def adamw_step_kernel(
    table_ptr, numbers_ptr, corrections_ptr, grad_scale_ptr, found_inf_ptr, tensors, beta2, rest1, rest2, eps, sign,
    BACKUPS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_FOUND_INF: tl.constexpr, COLUMNS: tl.constexpr, KINDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`rest` is 1 - beta, which float32 does not find from beta."""
    LISTS: tl.constexpr = COLUMNS - FIRST - 3
    # the steps, which are no list to walk, come last
    OLD: tl.constexpr = LISTS - 2 if BACKUPS else 0
    place, flags, count, whole, blocks = find_chunk(table_ptr, tensors, COLUMNS, BLOCK)
    correction_ptr = corrections_ptr + place[2]
    rates = (
        tl.load(correction_ptr),
        tl.load(correction_ptr + tensors),
        number_of(numbers_ptr, place, LISTS + 1).to(tl.float32),
        number_of(numbers_ptr, place, LISTS + 2).to(tl.float32),
    )
    betas = (beta2, rest1, rest2)
    factor = gradient_factor(grad_scale_ptr, sign, HAS_SCALE)
    wanted = step_is_wanted(found_inf_ptr, HAS_FOUND_INF)
    for CODE in tl.static_range(3):
        if is_of(flags, KINDS, CODE):
            if wanted:
                adamw_blocks(place, 0, whole, count, rates, betas, eps, factor, OLD, CODE, True, BLOCK)
                adamw_blocks(place, whole, blocks, count, rates, betas, eps, factor, OLD, CODE, False, BLOCK)
            elif BACKUPS:
                copy_blocks(place, 0, OLD, 0, whole, count, CODE, True, BLOCK)
                copy_blocks(place, 0, OLD, whole, blocks, count, CODE, False, BLOCK)
