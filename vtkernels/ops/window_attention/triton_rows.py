"""Forward of windows of 65 to 160 tokens: a tile of queries against all keys at once, in half precision.

As in the kernels for small windows the loop is over the images of one window position, so that position bias, mask and
padding stay in registers. No power of two fits such a row of scores: its keys come in two parts, 144 as 128 and 16.
"""

import triton
import triton.language as tl

from vtkernels._core.triton_parts import product
from vtkernels.ops.window_attention.triton_common import (
    LOG2E,
    additive_tile,
    attended_tokens,
    load_rows,
    padded_values,
    product_scores,
    row_count,
    save_statistics,
    token_place,
)


@triton.jit
def key_side(
    key, query, query_region, window, geometry, bias_ptr, bias_stride, stride_y, stride_x, d, HEAD_DIM: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, BIAS: tl.constexpr, PADDING: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What is the same for all images: additive tile, offsets and mask of the keys' rows, and which of them are padding."""
    TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    y, x, real, region = token_place(key, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
    attended = attended_tokens(key, real, TOKENS, PADDING)
    tile = additive_tile(
        bias_ptr, bias_stride, query[:, None], key[None, :], query_region[:, None], region[None, :], attended[None, :], WINDOW_H, WINDOW_W, BIAS
    )
    offsets = (y * stride_y + x * stride_x)[:, None] + d[None, :]
    return tile, offsets, real[:, None] & (d < HEAD_DIM)[None, :], (key < TOKENS) & (real == 0)


@triton.jit
def window_attention_rows_fwd_kernel(
    qkv_ptr, out_ptr, statistics_ptr, bias_ptr, logit_scale_ptr, qkv_bias_ptr,
    batch, height, width, heads, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w, stride_b, stride_y, stride_x,
    out_stride_b, bias_stride, bias_head_stride, scale, share,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, REST: tl.constexpr,
    BLOCK_D: tl.constexpr, BIAS: tl.constexpr, COSINE: tl.constexpr, PADDING: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program = (share of the (window, image) list, tile of queries, head), head fastest. REST: keys beyond the first COLUMNS, or 0."""
    TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    TILES: tl.constexpr = (TOKENS + ROWS - 1) // ROWS
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    head = tl.program_id(0) % heads
    query_tile = tl.program_id(0) // heads % TILES
    windows = grid_h * grid_w
    geometry = (height, width, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w)
    start = tl.program_id(0) // heads // TILES * share
    stop = tl.minimum(start + share, windows * batch)
    first_window = start // batch
    channels = heads * HEAD_DIM

    d = tl.arange(0, BLOCK_D)
    if COSINE:
        scale *= tl.load(logit_scale_ptr + head).to(tl.float32)
    value_q, value_k, value_v = padded_values(qkv_bias_ptr, head, d, channels, HEAD_DIM, dtype, PADDING)
    bias_ptr += head * bias_head_stride

    for window_index in tl.range(0, (stop - 1) // batch - first_window + 1, num_stages=1):
        window = first_window + window_index
        # plus a zero the compiler cannot see through: it keeps the bias's addresses out of the loop over images
        zero = window // windows
        query = query_tile * ROWS + tl.arange(0, ROWS) + zero
        y, x, real, region = token_place(query, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
        q_offsets, q_mask = (y * stride_y + x * stride_x)[:, None] + d[None, :], real[:, None] & (d < HEAD_DIM)[None, :]
        out_offsets, padding = ((y * width + x) * channels)[:, None] + d[None, :], (query < TOKENS) & (real == 0)
        tile, offsets, mask, key_padding = key_side(
            tl.arange(0, COLUMNS) + zero, query, region, window, geometry, bias_ptr, bias_stride, stride_y, stride_x, d, HEAD_DIM,
            WINDOW_H, WINDOW_W, BIAS, PADDING, WIDE,
        )  # fmt: skip
        if REST:
            rest_tile, rest_offsets, rest_mask, rest_padding = key_side(
                COLUMNS + tl.arange(0, REST) + zero, query, region, window, geometry, bias_ptr, bias_stride, stride_y, stride_x, d, HEAD_DIM,
                WINDOW_H, WINDOW_W, BIAS, PADDING, WIDE,
            )  # fmt: skip

        first_image = tl.maximum(start - window * batch, 0)
        images = tl.minimum(stop - window * batch, batch) - first_image
        for step in tl.range(0, images, num_stages=STAGES):
            image = (first_image + step).to(tl.int64)
            q_ptr = qkv_ptr + image * stride_b + head * HEAD_DIM
            q = load_rows(q_ptr, q_offsets, q_mask, padding, value_q, PADDING)
            k = load_rows(q_ptr + channels, offsets, mask, key_padding, value_k, PADDING)
            v = load_rows(q_ptr + 2 * channels, offsets, mask, key_padding, value_v, PADDING)
            scores, _, _ = product_scores(q, k, tile, scale, COSINE, PRECISION)
            largest = tl.max(scores, 1)
            if REST:
                rest_k = load_rows(q_ptr + channels, rest_offsets, rest_mask, rest_padding, value_k, PADDING)
                rest_v = load_rows(q_ptr + 2 * channels, rest_offsets, rest_mask, rest_padding, value_v, PADDING)
                rest_scores, _, _ = product_scores(q, rest_k, rest_tile, scale, COSINE, PRECISION)
                largest = tl.maximum(largest, tl.max(rest_scores, 1))
            shift = largest * LOG2E
            p = tl.exp2(tl.fma(scores, LOG2E, -shift[:, None]))
            total = tl.sum(p, 1)
            out = product(p.to(dtype), v, PRECISION)
            if REST:
                rest_p = tl.exp2(tl.fma(rest_scores, LOG2E, -shift[:, None]))
                total += tl.sum(rest_p, 1)
                out = product(rest_p.to(dtype), rest_v, PRECISION, out)
            out *= (1.0 / total)[:, None]
            tl.store(out_ptr + image * out_stride_b + head * HEAD_DIM + out_offsets, out.to(dtype), mask=q_mask)
            item = (image * windows + window) * heads + head
            save_statistics(statistics_ptr, item, row_count(batch, windows, heads), query, largest, total, TOKENS)
