"""The Triton kernels of both ops: a program for each sample, which reads the sample's logits of all views.

Class counts and row strides are constants of the build: a row of 1000 float32 starts at a multiple of 16 bytes, which the compiler
could not know of a number given at run time.
"""

import triton
import triton.language as tl

FLOOR = tl.constexpr(1e-7)
# exp of anything below is 0: so it can stay finite, and 0 times it is 0
LOWEST = tl.constexpr(-105.0)


@triton.jit
def jsd_row_kernel(
    logits_ptr, target_ptr, loss_ptr, gradient_ptr, grad_loss_ptr, batch, grad_stride, weight, certain, even, share,
    CLASSES: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, VIEWS: tl.constexpr, WEIGHTS: tl.constexpr,
    TARGET: tl.constexpr, SMOOTH: tl.constexpr, LOSS: tl.constexpr, GRADIENT: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """Rows that fit the registers, all views together: logits are read once, and the gradient is written once."""
    sample = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < CLASSES
    x, e, log_sum, inverse = (), (), (), ()
    mixture = tl.zeros((BLOCK,), tl.float32)
    highest = 0.0
    for v in tl.static_range(VIEWS):
        z = tl.load(logits_ptr + (v * batch + sample) * STRIDE + column, there, float("-inf")).to(tl.float32)
        top = tl.max(z, 0)
        power = tl.exp(z - top)
        total = tl.sum(power, 0)
        if v == 0:
            highest = top
        x += (z - top,)
        e += (power,)
        log_sum += (tl.log(total),)
        inverse += (1.0 / total,)
        mixture += power * (inverse[v] * WEIGHTS[v])
    s, floored = log_mixture(mixture)
    a = ()
    loss = -tl.sum(floored, 0)
    for v in tl.static_range(VIEWS):
        a += (tl.sum(e[v] * (tl.maximum(x[v], LOWEST) - log_sum[v] - s), 0) * inverse[v],)
        loss += WEIGHTS[v] * a[v]
    loss *= weight
    wanted, whole = column, 1.0
    if TARGET == "hard":
        wanted = tl.load(target_ptr + sample)
        real = (wanted >= 0) & (wanted < CLASSES)
        # a class that does not exist: nothing is read, and everything is NaN
        own = tl.load(logits_ptr + sample * STRIDE + wanted, real, float("nan")).to(tl.float32) - highest
        loss += log_sum[0] - certain * own
        whole = tl.where(real, 1.0, float("nan"))
    if TARGET == "soft":
        soft = tl.load(target_ptr + sample * CLASSES + column, there, 0.0).to(tl.float32)
        whole = certain * tl.sum(soft, 0) + even * CLASSES
        loss += whole * log_sum[0] - certain * tl.sum(tl.where(soft == 0.0, 0.0, soft * x[0]), 0)
    if SMOOTH:
        loss -= even * tl.sum(tl.where(there, x[0], 0.0), 0)
    if LOSS:
        tl.store(loss_ptr + sample, loss * share)
    if GRADIENT:
        grad = share
        if GIVEN:
            grad *= tl.load(grad_loss_ptr + sample * grad_stride).to(tl.float32)
        for v in tl.static_range(VIEWS):
            p = e[v] * inverse[v]
            d = p * (weight * WEIGHTS[v] * grad) * (tl.maximum(x[v], LOWEST) - log_sum[v] - s - a[v])
            if v == 0 and TARGET != "none":
                target = even + (tl.where(column == wanted, certain, 0.0) if TARGET == "hard" else certain * soft)
                d += (whole * p - target) * grad
            tl.store(gradient_ptr + (v * batch + sample) * CLASSES + column, d.to(gradient_ptr.dtype.element_ty), there)


@triton.jit
def jsd_tiled_kernel(
    logits_ptr, target_ptr, loss_ptr, gradient_ptr, grad_loss_ptr, batch, grad_stride, weight, certain, even, share,
    CLASSES: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, VIEWS: tl.constexpr, WEIGHTS: tl.constexpr,
    TARGET: tl.constexpr, SMOOTH: tl.constexpr, LOSS: tl.constexpr, GRADIENT: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """Longer rows, tile by tile: they are read again for the sums, the divergence and the gradient, from the second-level cache."""
    sample = tl.program_id(0).to(tl.int64)
    top, log_sum, inverse = (), (), ()
    for v in tl.static_range(VIEWS):
        row_ptr = logits_ptr + (v * batch + sample) * STRIDE
        highest = tl.full((BLOCK,), float("-inf"), tl.float32)
        for start in range(0, CLASSES, BLOCK):
            highest = tl.maximum(highest, tile_of(row_ptr, start, CLASSES, BLOCK))
        top += (tl.max(highest, 0),)
        powers = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, CLASSES, BLOCK):
            powers += tl.exp(tile_of(row_ptr, start, CLASSES, BLOCK) - top[v])
        total = tl.sum(powers, 0)
        log_sum += (tl.log(total),)
        inverse += (1.0 / total,)
    # of all views, each element's sum of p d, weighed; and what is needed of the target
    consistency, weights, weighted = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    a = ()
    for _ in tl.static_range(VIEWS):
        a += (tl.zeros((BLOCK,), tl.float32),)
    for start in range(0, CLASSES, BLOCK):
        x, e, mixture = tiles(logits_ptr, batch, sample, start, top, inverse, CLASSES, STRIDE, BLOCK, VIEWS, WEIGHTS)
        s, floored = log_mixture(mixture)
        consistency -= floored
        sums = ()
        for v in tl.static_range(VIEWS):
            sums += (a[v] + e[v] * (tl.maximum(x[v], LOWEST) - log_sum[v] - s),)
        a = sums
        column = start + tl.arange(0, BLOCK)
        if TARGET == "soft":
            soft = tl.load(target_ptr + sample * CLASSES + column, column < CLASSES, 0.0).to(tl.float32)
            weights += soft
            weighted += certain * tl.where(soft == 0.0, 0.0, soft * x[0])
        if SMOOTH:
            weighted += even * tl.where(column < CLASSES, x[0], 0.0)
    loss = tl.sum(consistency, 0)
    middle = ()
    for v in tl.static_range(VIEWS):
        mean = tl.sum(a[v], 0) * inverse[v]
        loss += WEIGHTS[v] * mean
        middle += (log_sum[v] + mean,)
    loss = loss * weight - tl.sum(weighted, 0)
    wanted, whole = tl.zeros((), tl.int64) - 1, 1.0
    if TARGET == "hard":
        wanted = tl.load(target_ptr + sample)
        real = (wanted >= 0) & (wanted < CLASSES)
        own = tl.load(logits_ptr + sample * STRIDE + wanted, real, float("nan")).to(tl.float32) - top[0]
        loss += log_sum[0] - certain * own
        whole = tl.where(real, 1.0, float("nan"))
    if TARGET == "soft":
        whole = certain * tl.sum(weights, 0) + even * CLASSES
        loss += whole * log_sum[0]
    if LOSS:
        tl.store(loss_ptr + sample, loss * share)
    if GRADIENT:
        grad = share
        if GIVEN:
            grad *= tl.load(grad_loss_ptr + sample * grad_stride).to(tl.float32)
        for start in range(0, CLASSES, BLOCK):
            x, e, mixture = tiles(logits_ptr, batch, sample, start, top, inverse, CLASSES, STRIDE, BLOCK, VIEWS, WEIGHTS)
            s, floored = log_mixture(mixture)
            column = start + tl.arange(0, BLOCK)
            for v in tl.static_range(VIEWS):
                p = e[v] * inverse[v]
                d = p * (weight * WEIGHTS[v] * grad) * (tl.maximum(x[v], LOWEST) - s - middle[v])
                if v == 0 and TARGET != "none":
                    if TARGET == "hard":
                        target = even + tl.where(column == wanted, certain, 0.0)
                    else:
                        target = even + certain * tl.load(target_ptr + sample * CLASSES + column, column < CLASSES, 0.0).to(tl.float32)
                    d += (whole * p - target) * grad
                tl.store(gradient_ptr + (v * batch + sample) * CLASSES + column, d.to(gradient_ptr.dtype.element_ty), column < CLASSES)


@triton.jit
def tile_of(row_ptr, start, CLASSES: tl.constexpr, BLOCK: tl.constexpr):
    column = start + tl.arange(0, BLOCK)
    return tl.load(row_ptr + column, column < CLASSES, float("-inf")).to(tl.float32)


@triton.jit
def tiles(
    logits_ptr, batch, sample, start, top, inverse,
    CLASSES: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, VIEWS: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Of one tile and all views: z - max, its exponential, and the mixture."""
    x, e = (), ()
    mixture = tl.zeros((BLOCK,), tl.float32)
    for v in tl.static_range(VIEWS):
        shifted = tile_of(logits_ptr + (v * batch + sample) * STRIDE, start, CLASSES, BLOCK) - top[v]
        power = tl.exp(shifted)
        x += (shifted,)
        e += (power,)
        mixture += power * (inverse[v] * WEIGHTS[v])
    return x, e, mixture


@triton.jit
def log_mixture(mixture):
    """ln(mixture), less 1 where it is floored; and what is floored."""
    below = mixture < FLOOR
    return tl.log(tl.maximum(mixture, FLOOR)) - tl.where(below, 1.0, 0.0), tl.where(below, mixture, 0.0)
