"""Windows of more than 64 tokens: tiles of scores, walked one after another.

The forward walks the keys of a query tile with a running maximum and sum, and saves both for each row: m and 1 / l with
P = exp(S - m) / l. The backward is three kernels, each of which recomputes P from them:
- by query tile: dQ, the logit scale's gradient, and delta = rowsum(dO O), which the other two read;
- by key tile: dK, dV, and the gradient of padded tokens;
- by pair of tiles: the position bias's gradient, which stays in registers over windows and images.

The position bias is gathered for each tile where it is used. A head's table is laid out densely for that (the launcher
transposes it), so that neighbouring lanes read neighbouring words of the first-level cache.
"""

import triton
import triton.language as tl

from vtkernels._core.triton_parts import dropout_keeps, product
from vtkernels.ops.window_attention.triton_common import (
    LOG2E,
    additive_tile,
    attended_tokens,
    inverse_norm,
    load_rows,
    padded_values,
    product_scores,
    row_count,
    row_statistics,
    save_statistics,
    through_normalisation,
    token_place,
    unit,
)

# Below every score a masked row can have, and finite, also times LOG2E: exp(-inf - LOWEST) is 0 where exp(-inf - -inf)
# is not a number
LOWEST = tl.constexpr(-2.3e38)


@triton.jit
def program_place(heads, windows, TILES: tl.constexpr):
    """Head (fastest), tile, window and image of this program."""
    rest = tl.program_id(0) // heads
    window = rest // TILES % windows
    image = (rest // TILES // windows).to(tl.int64)
    return tl.program_id(0) % heads, rest % TILES, window, image, (image * windows + window) * heads + tl.program_id(0) % heads


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def window_attention_large_fwd_kernel(
    qkv_ptr, out_ptr, statistics_ptr, bias_ptr, logit_scale_ptr, qkv_bias_ptr,
    batch, height, width, heads, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w, stride_b, stride_y, stride_x,
    out_stride_b, bias_stride, bias_head_stride, scale, seed, keep_threshold, keep_factor,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr,
    BIAS: tl.constexpr, COSINE: tl.constexpr, DROPOUT: tl.constexpr, PADDING: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    TILES: tl.constexpr = (TOKENS + ROWS - 1) // ROWS
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    windows = grid_h * grid_w
    geometry = (height, width, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w)
    head, query_tile, window, image, item = program_place(heads, windows, TILES)
    channels = heads * HEAD_DIM
    d = tl.arange(0, BLOCK_D)
    if COSINE:
        scale *= tl.load(logit_scale_ptr + head).to(tl.float32)
    value_q, value_k, value_v = padded_values(qkv_bias_ptr, head, d, channels, HEAD_DIM, dtype, PADDING)
    bias_ptr += head * bias_head_stride
    q_ptr = qkv_ptr + image * stride_b + head * HEAD_DIM

    query = query_tile * ROWS + tl.arange(0, ROWS)
    y, x, real, query_region = token_place(query, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
    mask = real[:, None] & (d < HEAD_DIM)[None, :]
    q = load_rows(q_ptr, (y * stride_y + x * stride_x)[:, None] + d[None, :], mask, (query < TOKENS) & (real == 0), value_q, PADDING)

    largest = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for first_key in tl.range(0, TOKENS, COLUMNS, num_stages=STAGES):
        key = first_key + tl.arange(0, COLUMNS)
        key_y, key_x, key_real, key_region = token_place(key, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
        key_offsets = (key_y * stride_y + key_x * stride_x)[:, None] + d[None, :]
        key_mask, key_padding = key_real[:, None] & (d < HEAD_DIM)[None, :], (key < TOKENS) & (key_real == 0)
        k = load_rows(q_ptr + channels, key_offsets, key_mask, key_padding, value_k, PADDING)
        v = load_rows(q_ptr + 2 * channels, key_offsets, key_mask, key_padding, value_v, PADDING)
        attended = attended_tokens(key, key_real, TOKENS, PADDING)
        tile = additive_tile(
            bias_ptr, bias_stride, query[:, None], key[None, :], query_region[:, None], key_region[None, :], attended[None, :], WINDOW_H, WINDOW_W, BIAS
        )
        scores, _, _ = product_scores(q, k, tile, scale, COSINE, PRECISION)
        larger = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp2(tl.fma(scores, LOG2E, -(larger * LOG2E)[:, None]))
        correction = tl.exp2(largest * LOG2E - larger * LOG2E)
        total = total * correction + tl.sum(p, 1)
        if DROPOUT:
            p = tl.where(dropout_keeps(seed, item, query[:, None] * TOKENS + key[None, :], keep_threshold), p * keep_factor, 0.0)
        out = product(p.to(dtype), v, PRECISION, out * correction[:, None])
        largest = larger

    out *= (1.0 / total)[:, None]
    out_offsets = ((y * width + x) * channels)[:, None] + d[None, :]
    tl.store(out_ptr + image * out_stride_b + head * HEAD_DIM + out_offsets, out.to(dtype), mask=mask)
    save_statistics(statistics_ptr, item, row_count(batch, windows, heads), query, largest, total, TOKENS)


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def window_attention_large_bwd_query_kernel(
    qkv_ptr, grad_ptr, out_ptr, d_qkv_ptr, statistics_ptr, delta_ptr, bias_ptr, logit_scale_ptr, qkv_bias_ptr, d_logit_scale_ptr,
    batch, height, width, heads, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w, stride_b, stride_y, stride_x,
    grad_stride_b, grad_stride_y, grad_stride_x, out_stride_b, d_stride_b,
    bias_stride, bias_head_stride, scale, seed, keep_threshold, keep_factor,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr,
    BIAS: tl.constexpr, COSINE: tl.constexpr, DROPOUT: tl.constexpr, PADDING: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    TILES: tl.constexpr = (TOKENS + ROWS - 1) // ROWS
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    windows = grid_h * grid_w
    geometry = (height, width, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w)
    head, query_tile, window, image, item = program_place(heads, windows, TILES)
    channels = heads * HEAD_DIM
    d = tl.arange(0, BLOCK_D)
    plain_scale = scale
    if COSINE:
        scale *= tl.load(logit_scale_ptr + head).to(tl.float32)
    value_q, value_k, value_v = padded_values(qkv_bias_ptr, head, d, channels, HEAD_DIM, dtype, PADDING)
    bias_ptr += head * bias_head_stride
    q_ptr = qkv_ptr + image * stride_b + head * HEAD_DIM

    query = query_tile * ROWS + tl.arange(0, ROWS)
    y, x, real, query_region = token_place(query, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
    mask = real[:, None] & (d < HEAD_DIM)[None, :]
    q = load_rows(q_ptr, (y * stride_y + x * stride_x)[:, None] + d[None, :], mask, (query < TOKENS) & (real == 0), value_q, PADDING)
    grad_offsets = (y * grad_stride_y + x * grad_stride_x)[:, None] + d[None, :]
    d_out = tl.load(grad_ptr + image * grad_stride_b + head * HEAD_DIM + grad_offsets, mask=mask, other=0.0)
    out_offsets = ((y * width + x) * channels)[:, None] + d[None, :]
    out = tl.load(out_ptr + image * out_stride_b + head * HEAD_DIM + out_offsets, mask=mask, other=0.0)
    # a padded token's row of dO is zero: its delta, its dS and its dQ are too
    delta = tl.sum(d_out.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + item * TOKENS + query, delta, mask=query < TOKENS)
    shift, factor = row_statistics(statistics_ptr, item, row_count(batch, windows, heads), query, TOKENS)

    d_q = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for first_key in tl.range(0, TOKENS, COLUMNS, num_stages=STAGES):
        key = first_key + tl.arange(0, COLUMNS)
        key_y, key_x, key_real, key_region = token_place(key, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
        key_offsets = (key_y * stride_y + key_x * stride_x)[:, None] + d[None, :]
        key_mask, key_padding = key_real[:, None] & (d < HEAD_DIM)[None, :], (key < TOKENS) & (key_real == 0)
        k = load_rows(q_ptr + channels, key_offsets, key_mask, key_padding, value_k, PADDING)
        v = load_rows(q_ptr + 2 * channels, key_offsets, key_mask, key_padding, value_v, PADDING)
        attended = attended_tokens(key, key_real, TOKENS, PADDING)
        tile = additive_tile(
            bias_ptr, bias_stride, query[:, None], key[None, :], query_region[:, None], key_region[None, :], attended[None, :], WINDOW_H, WINDOW_W, BIAS
        )
        scores, _, k_inverse = product_scores(q, k, tile, scale, COSINE, PRECISION)
        p = tl.exp2(tl.fma(scores, LOG2E, -shift[:, None])) * factor[:, None]
        d_p = product(d_out, v, PRECISION, TRANSPOSED=True)
        if DROPOUT:
            d_p = tl.where(dropout_keeps(seed, item, query[:, None] * TOKENS + key[None, :], keep_threshold), d_p * keep_factor, 0.0)
        d_s = (p * (d_p - delta[:, None])).to(dtype)
        if COSINE:
            k = unit(k, k_inverse).to(dtype)
        d_q = product(d_s, k, PRECISION, d_q)

    if COSINE:
        q_inverse = inverse_norm(q.to(tl.float32))
        # the sum over keys of dS_ij cos_ij is the product of the unit row and its gradient. Triton 3.6 cannot build the rows' sum for tensor memory.
        along = tl.sum(q.to(tl.float32) * d_q, 1) * q_inverse
        tl.store(d_logit_scale_ptr + tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), along * plain_scale)
        d_q = through_normalisation(d_q, q, q_inverse, along)
    d_q *= scale
    d_offsets = ((y * width + x) * (3 * channels))[:, None] + d[None, :]
    tl.store(d_qkv_ptr + image * d_stride_b + head * HEAD_DIM + d_offsets, d_q.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def window_attention_large_bwd_key_kernel(
    qkv_ptr, grad_ptr, d_qkv_ptr, statistics_ptr, delta_ptr, bias_ptr, logit_scale_ptr, qkv_bias_ptr, d_qkv_bias_ptr,
    batch, height, width, heads, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w, stride_b, stride_y, stride_x,
    grad_stride_b, grad_stride_y, grad_stride_x, d_stride_b,
    bias_stride, bias_head_stride, scale, seed, keep_threshold, keep_factor,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr,
    BIAS: tl.constexpr, COSINE: tl.constexpr, DROPOUT: tl.constexpr, PADDING: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows are keys: the transposed scores K Q^T feed the products for dK and dV as they are."""
    TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    TILES: tl.constexpr = (TOKENS + ROWS - 1) // ROWS
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    windows = grid_h * grid_w
    geometry = (height, width, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w)
    head, key_tile, window, image, item = program_place(heads, windows, TILES)
    channels = heads * HEAD_DIM
    d = tl.arange(0, BLOCK_D)
    if COSINE:
        scale *= tl.load(logit_scale_ptr + head).to(tl.float32)
    value_q, value_k, value_v = padded_values(qkv_bias_ptr, head, d, channels, HEAD_DIM, dtype, PADDING)
    bias_ptr += head * bias_head_stride
    q_ptr = qkv_ptr + image * stride_b + head * HEAD_DIM
    delta_ptr += item * TOKENS

    key = key_tile * ROWS + tl.arange(0, ROWS)
    y, x, real, key_region = token_place(key, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
    padding = (key < TOKENS) & (real == 0)
    attended = attended_tokens(key, real, TOKENS, PADDING)
    mask = real[:, None] & (d < HEAD_DIM)[None, :]
    offsets = (y * stride_y + x * stride_x)[:, None] + d[None, :]
    k = load_rows(q_ptr + channels, offsets, mask, padding, value_k, PADDING)
    v = load_rows(q_ptr + 2 * channels, offsets, mask, padding, value_v, PADDING)

    d_k = tl.zeros([ROWS, BLOCK_D], tl.float32)
    d_v = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for first_query in tl.range(0, TOKENS, COLUMNS, num_stages=STAGES):
        query = first_query + tl.arange(0, COLUMNS)
        query_y, query_x, query_real, query_region = token_place(query, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
        query_mask = query_real[:, None] & (d < HEAD_DIM)[None, :]
        query_offsets = (query_y * stride_y + query_x * stride_x)[:, None] + d[None, :]
        q = load_rows(q_ptr, query_offsets, query_mask, (query < TOKENS) & (query_real == 0), value_q, PADDING)
        grad_offsets = (query_y * grad_stride_y + query_x * grad_stride_x)[:, None] + d[None, :]
        d_out = tl.load(grad_ptr + image * grad_stride_b + head * HEAD_DIM + grad_offsets, mask=query_mask, other=0.0)
        shift, factor = row_statistics(statistics_ptr, item, row_count(batch, windows, heads), query, TOKENS)
        delta = tl.load(delta_ptr + query, mask=query < TOKENS, other=0.0)
        tile = additive_tile(
            bias_ptr, bias_stride, query[None, :], key[:, None], query_region[None, :], key_region[:, None], attended[:, None], WINDOW_H, WINDOW_W, BIAS
        )
        scores, _, q_inverse = product_scores(k, q, tile, scale, COSINE, PRECISION)
        p = tl.exp2(tl.fma(scores, LOG2E, -shift[None, :])) * factor[None, :]
        d_p = product(v, d_out, PRECISION, TRANSPOSED=True)
        if DROPOUT:
            dropped = tl.where(dropout_keeps(seed, item, query[None, :] * TOKENS + key[:, None], keep_threshold), p * keep_factor, 0.0)
            d_s = dropped * d_p - p * delta[None, :]
        else:
            dropped = p
            d_s = p * (d_p - delta[None, :])
        d_v = product(dropped.to(dtype), d_out, PRECISION, d_v)
        if COSINE:
            q = unit(q, q_inverse).to(dtype)
        d_k = product(d_s.to(dtype), q, PRECISION, d_k)

    if COSINE:
        k_inverse = inverse_norm(k.to(tl.float32))
        d_k = through_normalisation(d_k, k, k_inverse, tl.sum(k.to(tl.float32) * d_k, 1) * k_inverse)
    d_k *= scale
    d_ptr = d_qkv_ptr + image * d_stride_b + head * HEAD_DIM + ((y * width + x) * (3 * channels))[:, None] + d[None, :]
    tl.store(d_ptr + channels, d_k.to(dtype), mask=mask)
    tl.store(d_ptr + 2 * channels, d_v.to(dtype), mask=mask)
    if PADDING == "value":
        part_ptr = d_qkv_bias_ptr + (tl.program_id(0) // heads).to(tl.int64) * (2 * channels) + head * HEAD_DIM + d
        tl.store(part_ptr, tl.sum(tl.where(padding[:, None], d_k, 0.0), 0), mask=d < HEAD_DIM)
        tl.store(part_ptr + channels, tl.sum(tl.where(padding[:, None], d_v, 0.0), 0), mask=d < HEAD_DIM)


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def window_attention_large_bwd_bias_kernel(
    qkv_ptr, grad_ptr, statistics_ptr, delta_ptr, bias_ptr, logit_scale_ptr, qkv_bias_ptr, d_bias_ptr,
    batch, height, width, heads, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w, stride_b, stride_y, stride_x,
    grad_stride_b, grad_stride_y, grad_stride_x,
    bias_stride, bias_head_stride, scale, seed, keep_threshold, keep_factor, share,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr,
    BIAS: tl.constexpr, COSINE: tl.constexpr, DROPOUT: tl.constexpr, PADDING: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program = (share of the (window, image) list, pair of tiles, head), head fastest; see the kernels for small windows."""
    TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    TILES: tl.constexpr = (TOKENS + ROWS - 1) // ROWS
    KEY_TILES: tl.constexpr = (TOKENS + COLUMNS - 1) // COLUMNS
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    windows = grid_h * grid_w
    geometry = (height, width, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w)
    head = tl.program_id(0) % heads
    rest = tl.program_id(0) // heads
    query_tile, key_tile, lane = rest // KEY_TILES % TILES, rest % KEY_TILES, rest // (TILES * KEY_TILES)
    start = lane * share
    stop = tl.minimum(start + share, windows * batch)
    first_window = start // batch
    channels = heads * HEAD_DIM
    d = tl.arange(0, BLOCK_D)
    if COSINE:
        scale *= tl.load(logit_scale_ptr + head).to(tl.float32)
    value_q, value_k, value_v = padded_values(qkv_bias_ptr, head, d, channels, HEAD_DIM, dtype, PADDING)
    bias_ptr += head * bias_head_stride

    d_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    for window_index in tl.range(0, (stop - 1) // batch - first_window + 1, num_stages=1):
        window = first_window + window_index
        # plus a zero the compiler cannot see through: it keeps the bias's addresses out of the loop over images
        zero = window // windows
        query, key = query_tile * ROWS + tl.arange(0, ROWS) + zero, key_tile * COLUMNS + tl.arange(0, COLUMNS) + zero
        y, x, real, query_region = token_place(query, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
        key_y, key_x, key_real, key_region = token_place(key, window, geometry, WINDOW_H, WINDOW_W, PADDING, WIDE)
        padding, key_padding = (query < TOKENS) & (real == 0), (key < TOKENS) & (key_real == 0)
        attended = attended_tokens(key, key_real, TOKENS, PADDING)
        tile = additive_tile(
            bias_ptr, bias_stride, query[:, None], key[None, :], query_region[:, None], key_region[None, :], attended[None, :], WINDOW_H, WINDOW_W, BIAS
        )
        mask, key_mask = real[:, None] & (d < HEAD_DIM)[None, :], key_real[:, None] & (d < HEAD_DIM)[None, :]
        offsets = (y * stride_y + x * stride_x)[:, None] + d[None, :]
        key_offsets = (key_y * stride_y + key_x * stride_x)[:, None] + d[None, :]
        grad_offsets = (y * grad_stride_y + x * grad_stride_x)[:, None] + d[None, :]

        first_image = tl.maximum(start - window * batch, 0)
        images = tl.minimum(stop - window * batch, batch) - first_image
        for step in tl.range(0, images, num_stages=STAGES):
            image = (first_image + step).to(tl.int64)
            q_ptr = qkv_ptr + image * stride_b + head * HEAD_DIM
            q = load_rows(q_ptr, offsets, mask, padding, value_q, PADDING)
            k = load_rows(q_ptr + channels, key_offsets, key_mask, key_padding, value_k, PADDING)
            v = load_rows(q_ptr + 2 * channels, key_offsets, key_mask, key_padding, value_v, PADDING)
            d_out = tl.load(grad_ptr + image * grad_stride_b + head * HEAD_DIM + grad_offsets, mask=mask, other=0.0)
            item = (image * windows + window) * heads + head
            shift, factor = row_statistics(statistics_ptr, item, row_count(batch, windows, heads), query, TOKENS)
            delta = tl.load(delta_ptr + item * TOKENS + query, mask=query < TOKENS, other=0.0)
            scores, _, _ = product_scores(q, k, tile, scale, COSINE, PRECISION)
            d_p = product(d_out, v, PRECISION, TRANSPOSED=True)
            if DROPOUT:
                d_p = tl.where(dropout_keeps(seed, item, query[:, None] * TOKENS + key[None, :], keep_threshold), d_p * keep_factor, 0.0)
            d_bias += tl.exp2(tl.fma(scores, LOG2E, -shift[:, None])) * factor[:, None] * (d_p - delta[:, None])

    row_length: tl.constexpr = KEY_TILES * COLUMNS
    part_ptr = d_bias_ptr + (lane * heads + head).to(tl.int64) * (TILES * ROWS * row_length)
    query, key = query_tile * ROWS + tl.arange(0, ROWS), key_tile * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(part_ptr + query[:, None] * row_length + key[None, :], d_bias)
