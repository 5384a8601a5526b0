"""Device functions shared by the kernels for small and for large windows: where a token lies, what is added to its scores."""

import triton
import triton.language as tl

from vtkernels._core.triton_parts import product

# Published weights were trained with a finite mask
MASK = tl.constexpr(-100.0)
LOG2E = tl.constexpr(1.4426950408889634)
# Smallest norm a cosine-attention row is divided by
EPSILON = tl.constexpr(1e-12)

# Kernels share one list of geometry arguments and hand it on as one tuple:
# height, width                    the map
# grid_h, grid_w                   windows along each axis
# period_h, period_w               length of the axis the shift is cyclic on: the map's (shift first) or the padded map's
# roll_h, roll_w                   shift modulo that length
# shift_h, shift_w                 shift, as the mask sees it
#
# PADDING says what a map is to which the window adds tokens: "none" are added; they are "zeros"; they have the "value" of
# the qkv bias; they are "masked", and take no part.


@triton.jit
def token_place(token, window, geometry, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, PADDING: tl.constexpr, WIDE: tl.constexpr):
    """Row and column of a window's token on the map; whether it is there at all, not padding nor beyond the window; its region.

    Tokens of one window see each other unmasked if their regions agree. Only the last windows of an axis hold a seam.
    """
    height, width, grid_h, grid_w, period_h, period_w, roll_h, roll_w, shift_h, shift_w = geometry
    window_row, window_column = window // grid_w, window % grid_w
    row = window_row * WINDOW_H + token // WINDOW_W
    column = window_column * WINDOW_W + token % WINDOW_W
    y = tl.where(row + roll_h >= period_h, row + roll_h - period_h, row + roll_h)
    x = tl.where(column + roll_w >= period_w, column + roll_w - period_w, column + roll_w)
    real = token < WINDOW_H * WINDOW_W
    if PADDING != "none":
        real &= (row < period_h) & (column < period_w) & (y < height) & (x < width)
    below = (window_row == grid_h - 1) & (token // WINDOW_W >= WINDOW_H - shift_h)
    right = (window_column == grid_w - 1) & (token % WINDOW_W >= WINDOW_W - shift_w)
    if WIDE:
        y, x = y.to(tl.int64), x.to(tl.int64)
    return y, x, real, below.to(tl.int32) + 2 * right.to(tl.int32)


@triton.jit
def additive_tile(
    bias_ptr, bias_stride, query, key, query_region, key_region, attended,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """What is added to the products: position bias, shift mask, -inf on keys that take no part.

    Queries and keys come shaped to broadcast against each other, in either orientation. `bias_ptr` is at this head.
    """
    TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    attended = tl.where(attended, 0.0, float("-inf"))
    tile = tl.where(query_region == key_region, attended, attended + MASK)
    if BIAS != "none":
        # rows and columns beyond the window read its last token's bias, which spares the loads a mask; nobody looks at them
        query, key = tl.minimum(query, TOKENS - 1), tl.minimum(key, TOKENS - 1)
        # the index is a sum of a query's and a key's part: one addition for each address
        if BIAS == "table":
            row_length: tl.constexpr = 2 * WINDOW_W - 1
            of_query = (query // WINDOW_W + WINDOW_H - 1) * row_length + query % WINDOW_W + WINDOW_W - 1
            of_key = -(key // WINDOW_W * row_length + key % WINDOW_W)
        else:
            of_query, of_key = query * TOKENS, key
        tile += tl.load(bias_ptr + of_query * bias_stride + of_key * bias_stride).to(tl.float32)
    return tile


@triton.jit
def attended_tokens(token, real, TOKENS: tl.constexpr, PADDING: tl.constexpr):
    """Which keys take part."""
    return real if PADDING == "masked" else token < TOKENS


@triton.jit
def load_rows(ptr, offsets, real, padding, value, PADDING: tl.constexpr):
    """Rows of q, k or v: 0 beyond the window, `value` (or 0) on padded tokens."""
    rows = tl.load(ptr + offsets, mask=real, other=0.0)
    if PADDING == "value":
        rows = tl.where(padding[:, None], value[None, :], rows)
    return rows


@triton.jit
def padded_values(qkv_bias_ptr, head, d, channels, HEAD_DIM: tl.constexpr, dtype: tl.constexpr, PADDING: tl.constexpr):
    """What a padded token projects to: this head's q, k and v (unused, and never loaded, without such padding)."""
    if PADDING == "value":
        ptr = qkv_bias_ptr + head * HEAD_DIM + d
        mask = d < HEAD_DIM
        values = tl.load(ptr, mask, 0.0).to(dtype), tl.load(ptr + channels, mask, 0.0).to(dtype), tl.load(ptr + 2 * channels, mask, 0.0).to(dtype)
    else:
        values = d, d, d
    return values


@triton.jit
def inverse_norm(rows):
    """1 / max(|row|, EPSILON) of each row."""
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(rows * rows, 1)), EPSILON)


@triton.jit
def product_scores(q, k, tile, scale, COSINE: tl.constexpr, PRECISION: tl.constexpr):
    """Scores, and the inverse norms of the rows (of use to cosine attention only)."""
    scores = product(q, k, PRECISION, TRANSPOSED=True)
    if COSINE:
        q_inverse, k_inverse = inverse_norm(q.to(tl.float32)), inverse_norm(k.to(tl.float32))
        scores = scores * (q_inverse * scale)[:, None] * k_inverse[None, :] + tile
    else:
        q_inverse, k_inverse = scale, scale
        scores = scores * scale + tile
    return scores, q_inverse, k_inverse


@triton.jit
def row_count(batch, windows, heads):
    """Windows of all images and heads, as a 64-bit number."""
    return tl.full([], 1, tl.int64) * batch * windows * heads


@triton.jit
def rounding(largest):
    """exp2 of what the rounded product `largest * LOG2E` lacks: kernels subtract that product, the statistics promise `largest`."""
    return tl.exp2(tl.fma(largest, LOG2E, -(largest * LOG2E)))


@triton.jit
def save_statistics(statistics_ptr, item, count, query, largest, total, TOKENS: tl.constexpr):
    """m and 1 / l of rows, where `total` is the sum of exp2(S LOG2E - largest LOG2E)."""
    row_ptr = statistics_ptr + item * TOKENS + query
    tl.store(row_ptr, largest, mask=query < TOKENS)
    tl.store(row_ptr + count * TOKENS, rounding(largest) / total, mask=query < TOKENS)


@triton.jit
def row_statistics(statistics_ptr, item, count, query, TOKENS: tl.constexpr):
    """Shift and factor of rows, with P = exp2(S LOG2E - shift) factor; beyond the window P is 0."""
    row_ptr = statistics_ptr + item * TOKENS + query
    largest = tl.load(row_ptr, mask=query < TOKENS, other=1e30)
    factor = tl.load(row_ptr + count * TOKENS, mask=query < TOKENS, other=0.0)
    return largest * LOG2E, tl.where(query < TOKENS, factor / rounding(largest), 0.0)


@triton.jit
def unit(rows, inverse):
    """Rows divided by their norm, in float32. Cheaper to make anew than to keep."""
    return rows.to(tl.float32) * inverse[:, None]


@triton.jit
def through_normalisation(d_unit, rows, inverse, along):
    """Gradient of rows from that of their unit rows: the part `along` the row vanishes, except where the norm was clamped."""
    vanishing = tl.where(inverse < 1.0 / EPSILON, along * inverse, 0.0)
    return (d_unit - rows.to(tl.float32) * vanishing[:, None]) * inverse[:, None]
