"""The Triton kernels of the pairs: one launch each, every row read once and every result written once, no atomics."""

import triton
import triton.language as tl


@triton.jit
def held(coordinate, size):
    """Moved to the nearest edge where it lies outside."""
    return tl.minimum(tl.maximum(coordinate, 0), size - 1)


@triton.jit
def distance(first, second, size, SIGNED: tl.constexpr, NORMALIZE: tl.constexpr):
    difference = (first - second).to(tl.float32)
    if not SIGNED:
        difference = tl.abs(difference)
    if NORMALIZE:
        difference = tl.div_rn(difference, tl.zeros_like(difference) + size.to(tl.float32))
    return difference


@triton.jit
def coordinates(given_ptr, index, words, height, width, keep, GIVEN: tl.constexpr):
    """(row, column, row, column) of pairs, as int64."""
    if GIVEN:
        given = given_ptr + index.to(tl.int64) * 4
        row0, column0 = held(tl.load(given, keep, 0), height), held(tl.load(given + 1, keep, 0), width)
        row1, column1 = held(tl.load(given + 2, keep, 0), height), held(tl.load(given + 3, keep, 0), width)
    else:
        # the high half of the product: uniform on the axis, and no division
        w0, w1, w2, w3 = words
        row0, column0 = tl.umulhi(w0, height.to(tl.uint32)), tl.umulhi(w1, width.to(tl.uint32))
        row1, column1 = tl.umulhi(w2, height.to(tl.uint32)), tl.umulhi(w3, width.to(tl.uint32))
    return row0.to(tl.int64), column0.to(tl.int64), row1.to(tl.int64), column1.to(tl.int64)


@triton.jit(do_not_specialize=["total", "pairs", "height", "width", "seed", "offset_low", "offset_high"])
def drloc_pairs_fwd_kernel(
    features_ptr, given_ptr, out_ptr, targets_ptr, positions_ptr,
    total, pairs, height, width, channels, stride_b, stride_y, stride_x, seed, offset_low, offset_high,
    GIVEN: tl.constexpr, SIGNED: tl.constexpr, NORMALIZE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = (a few pairs, a block of channels); those of the first block write targets and positions."""
    index = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    keep = index < total
    image = index // pairs
    pair = (index % pairs).to(tl.uint32)
    # the counter is (pair, image, offset low, offset high), as in the reference
    words = tl.philox(seed, pair, image.to(tl.uint32), pair * 0 + offset_low.to(tl.uint32), pair * 0 + offset_high.to(tl.uint32), 10)
    row0, column0, row1, column1 = coordinates(given_ptr, index, words, height, width, keep, GIVEN)

    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = keep[:, None] & (c < channels)[None, :]
    base = image.to(tl.int64) * stride_b
    first = tl.load(features_ptr + (base + row0 * stride_y + column0 * stride_x)[:, None] + c[None, :], mask=mask)
    second = tl.load(features_ptr + (base + row1 * stride_y + column1 * stride_x)[:, None] + c[None, :], mask=mask)
    out = out_ptr + (index.to(tl.int64) * 2 * channels)[:, None] + c[None, :]
    tl.store(out, first, mask=mask)
    tl.store(out + channels, second, mask=mask)

    if tl.program_id(1) == 0:
        targets = targets_ptr + index.to(tl.int64) * 2
        tl.store(targets, distance(row0, row1, height, SIGNED, NORMALIZE), mask=keep)
        tl.store(targets + 1, distance(column0, column1, width, SIGNED, NORMALIZE), mask=keep)
        positions = positions_ptr + index.to(tl.int64) * 4
        tl.store(positions, row0, mask=keep)
        tl.store(positions + 1, column0, mask=keep)
        tl.store(positions + 2, row1, mask=keep)
        tl.store(positions + 3, column1, mask=keep)


@triton.jit(do_not_specialize=["references", "height", "width"])
def drloc_pairs_bwd_kernel(
    grad_ptr, positions_ptr, d_features_ptr, references, height, width, channels, stride_b, stride_m,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program = (position of an image, a block of channels): it looks through the image's references, two for each pair, and
    adds the rows of those that are its own, in their order. Zeros are written too, so nothing is cleared beforehand.
    """
    NONE: tl.constexpr = 2147483647
    image = tl.program_id(0) // (height * width)
    position = tl.program_id(0) % (height * width)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < channels
    grad_ptr += image.to(tl.int64) * stride_b
    places = positions_ptr + image.to(tl.int64) * references * 2
    total = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, references, BLOCK_M):
        reference = start + tl.arange(0, BLOCK_M)
        row = held(tl.load(places + reference * 2, reference < references, 0).to(tl.int32), height)
        column = held(tl.load(places + reference * 2 + 1, reference < references, 0).to(tl.int32), width)
        own = tl.where((row * width + column == position) & (reference < references), reference, NONE)
        found = tl.min(own, 0)
        while found < NONE:
            rows = grad_ptr + (found // 2).to(tl.int64) * stride_m + found % 2 * channels
            total += tl.load(rows + c, mask=mask, other=0.0).to(tl.float32)
            own = tl.where(own == found, NONE, own)
            found = tl.min(own, 0)
    tl.store(d_features_ptr + tl.program_id(0).to(tl.int64) * channels + c, total.to(d_features_ptr.dtype.element_ty), mask=mask)
