"""Windows of up to 64 tokens: all scores of a window and head are one register tile.

Program = (share, head), head fastest, so that neighbours use the same memory lines. A share is an equal part of the
list of (window position, image), images fastest: within one window position token offsets, position bias, shift mask
and padding are loop invariants, and a shifted, padded, biased window costs what a plain one does.
"""

import triton
import triton.language as tl

from vtkernels._core.triton_parts import dropout_keeps, product
from vtkernels.ops.window_attention.triton_common import (
    LOG2E,
    additive_tile,
    attended_tokens,
    load_rows,
    padded_values,
    product_scores,
    through_normalisation,
    token_place,
    unit,
)


@triton.jit
def exponentials(scores):
    """exp(scores - row maximum). One fused multiply-add: rounding the maximum's product shifts a whole row, which cancels."""
    largest = tl.max(scores, 1) * LOG2E
    return tl.exp2(tl.fma(scores, LOG2E, -largest[:, None]))


@triton.jit
def kept_pairs(seed, item, token, keep_threshold, TOKENS: tl.constexpr):
    """Which probabilities of a window and head dropout keeps."""
    # plus a zero the compiler cannot see through: it would draw the first of the ten rounds, which no image changes,
    # once for all, and keep two numbers of each pair in registers
    first = token * TOKENS + (item >> 62).to(tl.int32)
    return dropout_keeps(seed, item, first[:, None] + token[None, :], keep_threshold)


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def window_attention_small_fwd_kernel(
    qkv_ptr, out_ptr, bias_ptr, logit_scale_ptr, qkv_bias_ptr,
    batch, height, width, heads, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w, stride_b, stride_y, stride_x,
    out_stride_b, bias_stride, bias_head_stride, scale, seed, keep_threshold, keep_factor, share,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BIAS: tl.constexpr, COSINE: tl.constexpr, DROPOUT: tl.constexpr, PADDING: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    head = tl.program_id(0) % heads
    windows = grid_h * grid_w
    geometry = (height, width, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w)
    start = tl.program_id(0) // heads * share
    stop = tl.minimum(start + share, windows * batch)
    first_window = start // batch
    channels = heads * HEAD_DIM

    d = tl.arange(0, BLOCK_D)
    if COSINE:
        scale *= tl.load(logit_scale_ptr + head).to(tl.float32)
    value_q, value_k, value_v = padded_values(qkv_bias_ptr, head, d, channels, HEAD_DIM, dtype, PADDING)

    for window_index in tl.range(0, (stop - 1) // batch - first_window + 1, num_stages=1):
        window = first_window + window_index
        # plus a zero the compiler cannot see through: it would compute the bias's addresses once for all windows, and
        # keep them in registers through the loop over images
        token = tl.arange(0, BLOCK_N) + window // windows
        y, x, real, region = token_place(token, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
        padding = (token < TOKENS) & (real == 0)
        attended = attended_tokens(token, real, TOKENS, PADDING)
        tile = additive_tile(
            bias_ptr + head * bias_head_stride, bias_stride, token[:, None], token[None, :], region[:, None], region[None, :], attended[None, :],
            WINDOW_H, WINDOW_W, BIAS,
        )  # fmt: skip
        in_offsets = (y * stride_y + x * stride_x)[:, None] + d[None, :]
        out_offsets = ((y * width + x) * channels)[:, None] + d[None, :]
        mask = real[:, None] & (d < HEAD_DIM)[None, :]

        first_image = tl.maximum(start - window * batch, 0)
        images = tl.minimum(stop - window * batch, batch) - first_image
        for step in tl.range(0, images, num_stages=STAGES):
            image = (first_image + step).to(tl.int64)
            q_ptr = qkv_ptr + image * stride_b + head * HEAD_DIM
            q = load_rows(q_ptr, in_offsets, mask, padding, value_q, PADDING)
            k = load_rows(q_ptr + channels, in_offsets, mask, padding, value_k, PADDING)
            v = load_rows(q_ptr + 2 * channels, in_offsets, mask, padding, value_v, PADDING)
            scores, _, _ = product_scores(q, k, tile, scale, COSINE, PRECISION)
            p = exponentials(scores)
            factor = 1.0 / tl.sum(p, 1)
            if DROPOUT:
                item = (image * windows + window) * heads + head
                p = tl.where(kept_pairs(seed, item, token, keep_threshold, TOKENS), p, 0.0)
                factor *= keep_factor
            out = product(p.to(dtype), v, PRECISION) * factor[:, None]
            tl.store(out_ptr + image * out_stride_b + head * HEAD_DIM + out_offsets, out.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def window_attention_small_bwd_kernel(
    qkv_ptr, grad_ptr, d_qkv_ptr, bias_ptr, logit_scale_ptr, qkv_bias_ptr, d_bias_ptr, d_logit_scale_ptr, d_qkv_bias_ptr,
    batch, height, width, heads, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w, stride_b, stride_y, stride_x,
    grad_stride_b, grad_stride_y, grad_stride_x, d_stride_b,
    bias_stride, bias_head_stride, scale, seed, keep_threshold, keep_factor, share,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BIAS: tl.constexpr, COSINE: tl.constexpr, DROPOUT: tl.constexpr, PADDING: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sums over windows and images (gradients of bias, logit scale and qkv bias) stay in registers for the program's
    life; the program writes them once, and the launcher adds the programs' sums in a fixed order.
    """
    TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    head = tl.program_id(0) % heads
    windows = grid_h * grid_w
    geometry = (height, width, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w)
    start = tl.program_id(0) // heads * share
    stop = tl.minimum(start + share, windows * batch)
    first_window = start // batch
    channels = heads * HEAD_DIM

    d = tl.arange(0, BLOCK_D)
    if COSINE:
        plain_scale = scale
        scale *= tl.load(logit_scale_ptr + head).to(tl.float32)
    value_q, value_k, value_v = padded_values(qkv_bias_ptr, head, d, channels, HEAD_DIM, dtype, PADDING)

    d_bias = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
    d_logit_scale = tl.zeros([BLOCK_N], tl.float32)
    d_value_k = tl.zeros([BLOCK_D], tl.float32)
    d_value_v = tl.zeros([BLOCK_D], tl.float32)
    for window_index in tl.range(0, (stop - 1) // batch - first_window + 1, num_stages=1):
        window = first_window + window_index
        # plus a zero the compiler cannot see through: it would compute the bias's addresses once for all windows, and
        # keep them in registers through the loop over images
        token = tl.arange(0, BLOCK_N) + window // windows
        y, x, real, region = token_place(token, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
        padding = (token < TOKENS) & (real == 0)
        attended = attended_tokens(token, real, TOKENS, PADDING)
        tile = additive_tile(
            bias_ptr + head * bias_head_stride, bias_stride, token[:, None], token[None, :], region[:, None], region[None, :], attended[None, :],
            WINDOW_H, WINDOW_W, BIAS,
        )  # fmt: skip
        in_offsets = (y * stride_y + x * stride_x)[:, None] + d[None, :]
        grad_offsets = (y * grad_stride_y + x * grad_stride_x)[:, None] + d[None, :]
        d_offsets = ((y * width + x) * (3 * channels))[:, None] + d[None, :]
        mask = real[:, None] & (d < HEAD_DIM)[None, :]

        first_image = tl.maximum(start - window * batch, 0)
        images = tl.minimum(stop - window * batch, batch) - first_image
        for step in tl.range(0, images, num_stages=STAGES):
            image = (first_image + step).to(tl.int64)
            q_ptr = qkv_ptr + image * stride_b + head * HEAD_DIM
            q = load_rows(q_ptr, in_offsets, mask, padding, value_q, PADDING)
            k = load_rows(q_ptr + channels, in_offsets, mask, padding, value_k, PADDING)
            v = load_rows(q_ptr + 2 * channels, in_offsets, mask, padding, value_v, PADDING)
            # rows of padded tokens and beyond the window are zero, and so is all they would add to a gradient
            d_out = tl.load(grad_ptr + image * grad_stride_b + head * HEAD_DIM + grad_offsets, mask=mask, other=0.0)
            scores, q_inverse, k_inverse = product_scores(q, k, tile, scale, COSINE, PRECISION)
            if COSINE:
                # operands of two products to come, which wait in shared memory: put there now, while registers are free
                unit_q, unit_k = unit(q, q_inverse).to(dtype), unit(k, k_inverse).to(dtype)
            p = exponentials(scores)
            # what is kept is multiplied by the factor, and where P stands for itself a row's number makes up for it
            p *= ((keep_factor if DROPOUT else 1.0) / tl.sum(p, 1))[:, None]
            dropped = p
            if DROPOUT:
                item = (image * windows + window) * heads + head
                dropped = tl.where(kept_pairs(seed, item, token, keep_threshold, TOKENS), p, 0.0)
            d_p = product(d_out, v, PRECISION, TRANSPOSED=True)
            # dS before the product for dV: it frees dP, and the tiles that live on are 16 bits wide
            if DROPOUT:
                d_p *= dropped
                d_s = d_p - p * (tl.sum(d_p, 1) / keep_factor)[:, None]
            else:
                d_s = p * (d_p - tl.sum(p * d_p, 1)[:, None])
            if BIAS != "none":
                d_bias += d_s
            d_ptr = d_qkv_ptr + image * d_stride_b + head * HEAD_DIM
            d_v = product(tl.trans(dropped.to(dtype)), d_out, PRECISION)
            tl.store(d_ptr + 2 * channels + d_offsets, d_v.to(dtype), mask=mask)
            if PADDING == "value":
                d_value_v += tl.sum(tl.where(padding[:, None], d_v, 0.0), 0)
            d_s = d_s.to(dtype)
            # each gradient is finished and stored before the next product, to free its registers
            if COSINE:
                d_k = product(tl.trans(d_s), unit_q, PRECISION)
                d_k = through_normalisation(d_k, k, k_inverse, tl.sum(k.to(tl.float32) * d_k, 1) * k_inverse) * scale
            else:
                d_k = product(tl.trans(d_s), q, PRECISION) * scale
            tl.store(d_ptr + channels + d_offsets, d_k.to(dtype), mask=mask)
            if PADDING == "value":
                d_value_k += tl.sum(tl.where(padding[:, None], d_k, 0.0), 0)
            if COSINE:
                d_q = product(d_s, unit_k, PRECISION)
                # the sum over keys of dS_ij cos_ij is the product of the unit row and its gradient
                along = tl.sum(q.to(tl.float32) * d_q, 1) * q_inverse
                d_logit_scale += along
                d_q = through_normalisation(d_q, q, q_inverse, along) * scale
            else:
                d_q = product(d_s, k, PRECISION) * scale
            tl.store(d_ptr + d_offsets, d_q.to(dtype), mask=mask)

    part = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK_N)
    if BIAS != "none":
        # padded to the tile, so that rows are aligned; what lies beyond the window is never read
        tl.store(d_bias_ptr + part * (BLOCK_N * BLOCK_N) + token[:, None] * BLOCK_N + token[None, :], d_bias)
    if COSINE:
        tl.store(d_logit_scale_ptr + part, tl.sum(d_logit_scale, 0) * plain_scale)
    if PADDING == "value":
        value_part_ptr = d_qkv_bias_ptr + part // heads * (2 * channels) + head * HEAD_DIM + d
        tl.store(value_part_ptr, d_value_k, mask=d < HEAD_DIM)
        tl.store(value_part_ptr + channels, d_value_v, mask=d < HEAD_DIM)


@triton.jit
def fold_bias_kernel(d_bias_ptr, d_table_ptr, heads, head_stride, row_stride, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, BLOCK: tl.constexpr):
    """Gradient of the table from that of the dense bias: program = (offset, head) adds the pairs of its offset in a fixed order."""
    entry = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    dy = entry // (2 * WINDOW_W - 1) - (WINDOW_H - 1)
    dx = entry % (2 * WINDOW_W - 1) - (WINDOW_W - 1)
    key = tl.arange(0, BLOCK)
    query_y = key // WINDOW_W + dy
    query_x = key % WINDOW_W + dx
    inside = (key < WINDOW_H * WINDOW_W) & (query_y >= 0) & (query_y < WINDOW_H) & (query_x >= 0) & (query_x < WINDOW_W)
    pairs = tl.load(d_bias_ptr + head * head_stride + (query_y * WINDOW_W + query_x) * row_stride + key, mask=inside, other=0.0)
    tl.store(d_table_ptr + entry * heads + head, tl.sum(pairs, 0))
