"""Class attention's kernels over tokens: scores, mixtures, and their gradients, all heads of an image together.

Heads are padded to a tile that tensor cores take. Sums over tokens belong to one program, so nothing is added atomically.
"""

import triton
import triton.language as tl

from vtkernels._core.triton_parts import dropout_keeps, product

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def token_tile(x_ptr, image, t, c, tokens, stride_b, stride_t, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """x[image, t, c], 0 beyond the last token and channel."""
    mask = (t < tokens)[:, None]
    if CHANNELS % BLOCK_C != 0:
        mask = mask & (c < CHANNELS)[None, :]
    return tl.load(x_ptr + image * stride_b + t.to(tl.int64)[:, None] * stride_t + c[None, :], mask=mask, other=0.0)


@triton.jit
def head_tile(ptr, image, head, c, HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Rows [heads, channels] of one image, contiguous in memory; 0 beyond the last head and channel."""
    mask = (head < HEADS)[:, None]
    if CHANNELS % BLOCK_C != 0:
        mask = mask & (c < CHANNELS)[None, :]
    return tl.load(ptr + (image * HEADS + head)[:, None] * CHANNELS + c[None, :], mask=mask, other=0.0)


@triton.jit
def weight_tile(ptr, image, t, head, tokens, other, HEADS: tl.constexpr):
    """One number for each token and head of an image: [tokens, heads]."""
    mask = (t < tokens)[:, None] & (head < HEADS)[None, :]
    return tl.load(ptr + (image * tokens + t)[:, None] * HEADS + head[None, :], mask=mask, other=other)


@triton.jit
def store_weights(ptr, values, image, t, head, tokens, HEADS: tl.constexpr):
    tl.store(ptr + (image * tokens + t)[:, None] * HEADS + head[None, :], values, mask=(t < tokens)[:, None] & (head < HEADS)[None, :])


@triton.jit
def keep_tile(seed, image, t, head, keep_threshold, keep_factor, HEADS: tl.constexpr):
    """Dropout's factor, [tokens, heads]."""
    item = image * HEADS + head.to(tl.int64)
    # one element for each token, and items along the other axis
    return tl.where(dropout_keeps(seed, item[None, :], t[:, None] + head[None, :] * 0, keep_threshold), keep_factor, 0.0)


@triton.jit
def class_attention_scores_kernel(
    x_ptr, rows_ptr, scores_ptr, tokens, blocks, stride_b, stride_t,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program = (image, block of tokens): each token times each head's row, [B, T, h]. The rows are directions, or the mixtures' gradients."""
    image = (tl.program_id(0) // blocks).to(tl.int64)
    t = tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    head = tl.arange(0, BLOCK_H)
    sums = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    for first in tl.range(0, CHANNELS, BLOCK_C, num_stages=STAGES):
        c = first + tl.arange(0, BLOCK_C)
        x = token_tile(x_ptr, image, t, c, tokens, stride_b, stride_t, CHANNELS, BLOCK_C)
        rows = head_tile(rows_ptr, image, head, c, HEADS, CHANNELS, BLOCK_C).to(x.dtype)
        sums = product(x, rows, PRECISION, sums, TRANSPOSED=True)
    store_weights(scores_ptr, sums, image, t, head, tokens, HEADS)


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def class_attention_softmax_fwd_kernel(
    scores_ptr, kept_ptr, kept_sums_ptr, tokens, seed, keep_threshold, keep_factor,
    HEADS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """Program = image: scores of all heads become probabilities; with dropout also what it leaves of them, and its sums."""
    image = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_H)
    t = tl.arange(0, BLOCK_T)
    largest = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    for first in tl.range(0, tokens, BLOCK_T):
        scores = weight_tile(scores_ptr, image, first + t, head, tokens, float("-inf"), HEADS)
        # padded heads: finite, and never stored
        largest = tl.maximum(largest, tl.max(tl.where((head < HEADS)[None, :], scores, 0.0), 0))
    total = tl.zeros((BLOCK_H,), tl.float32)
    for first in tl.range(0, tokens, BLOCK_T):
        scores = weight_tile(scores_ptr, image, first + t, head, tokens, float("-inf"), HEADS)
        total += tl.sum(tl.exp2(tl.fma(scores, LOG2E, -(largest * LOG2E)[None, :])), 0)
    inverse = 1.0 / tl.where(head < HEADS, total, 1.0)
    kept_sums = tl.zeros((BLOCK_H,), tl.float32)
    for first in tl.range(0, tokens, BLOCK_T):
        p = weight_tile(scores_ptr, image, first + t, head, tokens, float("-inf"), HEADS)
        p = tl.exp2(tl.fma(p, LOG2E, -(largest * LOG2E)[None, :])) * inverse[None, :]
        store_weights(scores_ptr, p, image, first + t, head, tokens, HEADS)
        if DROPOUT:
            p *= keep_tile(seed, image, first + t, head, keep_threshold, keep_factor, HEADS)
            store_weights(kept_ptr, p, image, first + t, head, tokens, HEADS)
            kept_sums += tl.sum(p, 0)
    if DROPOUT:
        tl.store(kept_sums_ptr + image * HEADS + head, kept_sums, mask=head < HEADS)


@triton.jit
def class_attention_mix_kernel(
    x_ptr, weights_ptr, out_ptr, tokens, stride_b, stride_t,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program = (image, block of channels): sums over tokens of weight times token, [B, h, C]."""
    column_blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    image = (tl.program_id(0) // column_blocks).to(tl.int64)
    c = tl.program_id(0) % column_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    head = tl.arange(0, BLOCK_H)
    sums = tl.zeros((BLOCK_H, BLOCK_C), tl.float32)
    for first in tl.range(0, tokens, BLOCK_T, num_stages=STAGES):
        t = first + tl.arange(0, BLOCK_T)
        x = token_tile(x_ptr, image, t, c, tokens, stride_b, stride_t, CHANNELS, BLOCK_C)
        weights = weight_tile(weights_ptr, image, t, head, tokens, 0.0, HEADS).to(x.dtype)
        sums = product(tl.trans(weights), x, PRECISION, sums)
    mask = (head < HEADS)[:, None]
    if CHANNELS % BLOCK_C != 0:
        mask = mask & (c < CHANNELS)[None, :]
    tl.store(out_ptr + (image * HEADS + head)[:, None] * CHANNELS + c[None, :], sums, mask=mask)


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def class_attention_softmax_bwd_kernel(
    probabilities_ptr, d_scores_ptr, kept_ptr, kept_sums_ptr, constant_ptr, tokens, seed, keep_threshold, keep_factor,
    HEADS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """Program = image: in d_scores the products of tokens and the mixtures' gradients become gradients of the scores.

    With dropout also what it left of the probabilities, and its sums.
    """
    image = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_H)
    t = tl.arange(0, BLOCK_T)
    if DROPOUT:
        constant = tl.load(constant_ptr + image * HEADS + head, mask=head < HEADS, other=0.0)
    mean = tl.zeros((BLOCK_H,), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    kept_sums = tl.zeros((BLOCK_H,), tl.float32)
    for first in tl.range(0, tokens, BLOCK_T):
        p = weight_tile(probabilities_ptr, image, first + t, head, tokens, 0.0, HEADS)
        d_p = weight_tile(d_scores_ptr, image, first + t, head, tokens, 0.0, HEADS)
        if DROPOUT:
            factor = keep_tile(seed, image, first + t, head, keep_threshold, keep_factor, HEADS)
            d_p = factor * (d_p + constant[None, :])
            store_weights(kept_ptr, p * factor, image, first + t, head, tokens, HEADS)
            kept_sums += tl.sum(p * factor, 0)
        mean += tl.sum(p * d_p, 0)
        total += tl.sum(p, 0)
    # rounding left the sum of probabilities a little off 1, which a large mean would carry into every score
    mean /= tl.where(head < HEADS, total, 1.0)
    for first in tl.range(0, tokens, BLOCK_T):
        p = weight_tile(probabilities_ptr, image, first + t, head, tokens, 0.0, HEADS)
        d_p = weight_tile(d_scores_ptr, image, first + t, head, tokens, 0.0, HEADS)
        if DROPOUT:
            d_p = keep_tile(seed, image, first + t, head, keep_threshold, keep_factor, HEADS) * (d_p + constant[None, :])
        store_weights(d_scores_ptr, p * (d_p - mean[None, :]), image, first + t, head, tokens, HEADS)
    if DROPOUT:
        tl.store(kept_sums_ptr + image * HEADS + head, kept_sums, mask=head < HEADS)


@triton.jit
def class_attention_tokens_bwd_kernel(
    d_x_ptr, d_class_ptr, kept_ptr, d_scores_ptr, directions_ptr, d_mixtures_ptr, tokens, blocks,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program = (image, block of tokens): gradients of the tokens, which need not be read for it.

    The class token's row is complete but for what comes through the query; it is also left in float32 in d_class [B, C].
    """
    dtype: tl.constexpr = d_x_ptr.dtype.element_ty
    image = (tl.program_id(0) // blocks).to(tl.int64)
    t = tl.program_id(0) % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    head = tl.arange(0, BLOCK_H)
    kept = weight_tile(kept_ptr, image, t, head, tokens, 0.0, HEADS).to(dtype)
    d_s = weight_tile(d_scores_ptr, image, t, head, tokens, 0.0, HEADS).to(dtype)
    for first in tl.range(0, CHANNELS, BLOCK_C, num_stages=STAGES):
        c = first + tl.arange(0, BLOCK_C)
        d_x = product(kept, head_tile(d_mixtures_ptr, image, head, c, HEADS, CHANNELS, BLOCK_C).to(dtype), PRECISION)
        d_x = product(d_s, head_tile(directions_ptr, image, head, c, HEADS, CHANNELS, BLOCK_C).to(dtype), PRECISION, d_x)
        mask = (t < tokens)[:, None]
        class_mask = (t == 0)[:, None]
        if CHANNELS % BLOCK_C != 0:
            mask = mask & (c < CHANNELS)[None, :]
            class_mask = class_mask & (c < CHANNELS)[None, :]
        rows = (image * tokens + t)[:, None] * CHANNELS + c[None, :]
        tl.store(d_x_ptr + rows, d_x.to(dtype), mask=mask)
        tl.store(d_class_ptr + image * CHANNELS + (t * 0)[:, None] + c[None, :], d_x, mask=class_mask)
