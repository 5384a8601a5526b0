"""The Triton kernels of talking-heads attention.

A program owns 16 rows (queries, or keys) of one image and all heads, and walks the other side in tiles. Scores of all
heads are tuples of register tiles: mixing adds tiles of one thread's own elements, and needs no exchange. A softmax that
is mixed again needs its sums before its first product, so the rows are walked twice: for maximum and sum, then for the result.

The backward is four kernels, each of which computes the scores anew:
- by query tile: each row's maximum, sum and delta = sum of P dP, for the others; gradients of what mixes behind the softmax;
- by query tile: dQ; by key tile: dK; one kernel, in either orientation;
- by query tile: the gradient of what mixes before the softmax;
- by key tile: dV.
The first and third go over the probabilities, and the gradients before the softmax, of a group of heads in each program:
products are repeated by every group, mixing is not. Sums over an image's scores stay in registers, one of a thread's own for each
pair of heads; each program writes its sums once, and the launcher adds the programs' sums in a fixed order.
"""

import triton
import triton.language as tl

from vtkernels._core.triton_parts import dropout_keeps, product

# Below every score, and finite: exp(-inf - LOWEST) is 0 where exp(-inf - -inf) is not a number
LOWEST = tl.constexpr(-3.4028234e38)


@triton.jit
def load_rows(ptr, index, stride, tokens, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of one head, zero beyond the last token."""
    d = tl.arange(0, BLOCK_D)
    return tl.load(ptr + index[:, None] * stride + d[None, :], mask=(index < tokens)[:, None] & (d < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def products(
    a_ptr, a_index, a_stride, b_ptr, b_index, b_stride, tokens, factor,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """factor * a . b for each head: a tuple of [rows of a, rows of b]."""
    found = ()
    for head in tl.static_range(HEADS):
        a = load_rows(a_ptr + head * HEAD_DIM, a_index, a_stride, tokens, HEAD_DIM, BLOCK_D)
        b = load_rows(b_ptr + head * HEAD_DIM, b_index, b_stride, tokens, HEAD_DIM, BLOCK_D)
        found = found + (product(a, tl.trans(b), PRECISION, EXACT=True) * factor,)
    return found


@triton.jit
def mixed_head(weight_ptr, values, head: tl.constexpr, HEADS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """sum over g of weight[head, g] * values[g], or of weight[g, head]."""
    row: tl.constexpr = head if TRANSPOSED else head * HEADS
    step: tl.constexpr = HEADS if TRANSPOSED else 1
    total = tl.load(weight_ptr + row).to(tl.float32) * values[0]
    for other in tl.static_range(1, HEADS):
        total += tl.load(weight_ptr + row + other * step).to(tl.float32) * values[other]
    return total


@triton.jit
def mixed_scores(pre_ptr, scores, attended, GROUP: tl.constexpr, HEADS: tl.constexpr):
    """Scores as the softmax of GROUP heads sees them, but for a bias that it cancels; -inf where there is no key."""
    found = ()
    for head in tl.static_range(GROUP):
        found = found + (tl.where(attended, mixed_head(pre_ptr, scores, head, HEADS, False), float("-inf")),)
    return found


@triton.jit
def probabilities(pre_ptr, scores, attended, largest, inverse, GROUP: tl.constexpr, HEADS: tl.constexpr):
    """P of GROUP heads from the scores; `largest` and `inverse` hold for each of them what broadcasts against its tile."""
    found = ()
    for head in tl.static_range(GROUP):
        mixed = tl.where(attended, mixed_head(pre_ptr, scores, head, HEADS, False), float("-inf"))
        found = found + (tl.exp(mixed - largest[head]) * inverse[head],)
    return found


@triton.jit
def dropped(values, seed, image, query, key, tokens, keep_threshold, keep_factor, HEADS: tl.constexpr, DROPOUT: tl.constexpr):
    """Each head's tile with dropout applied."""
    found = values
    if DROPOUT:
        found = ()
        for head in tl.static_range(HEADS):
            keep = dropout_keeps(seed, image * HEADS + head, query * tokens + key, keep_threshold)
            found = found + (tl.where(keep, values[head] * keep_factor, 0.0),)
    return found


@triton.jit
def value_weights(post_ptr, post_bias_ptr, p, head: tl.constexpr, HEADS: tl.constexpr, POST_BIAS: tl.constexpr):
    """One head's mixture of the probabilities: what multiplies its values."""
    weights = mixed_head(post_ptr, p, head, HEADS, False)
    if POST_BIAS:
        weights += tl.load(post_bias_ptr + head).to(tl.float32)
    return weights


@triton.jit
def gradients_of_mixed(p, post_ptr, grads, delta, GROUP: tl.constexpr, HEADS: tl.constexpr):
    """Gradients of the mixed scores of GROUP heads from those of the values' weights: back through the second mixing and the softmax."""
    found = ()
    for head in tl.static_range(GROUP):
        found = found + (p[head] * (mixed_head(post_ptr, grads, head, HEADS, True) - delta[head]),)
    return found


@triton.jit
def own_sum(x, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A quarter as many sums: of the four elements of each 2 x 8-strided square that one thread of a product's tile holds."""
    return tl.sum(tl.sum(tl.reshape(x, [2, BLOCK_M // 2, BLOCK_N // 2, 2]), 3), 0)


@triton.jit
def row_statistics(
    q_ptr, k_ptr, query, stride, pre_ptr, tokens, scale, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Maximum and 1 / sum of the rows of GROUP heads, as [BLOCK_M, 1]."""
    largest = ()
    total = ()
    for _ in tl.static_range(GROUP):
        largest = largest + (tl.full([BLOCK_M], LOWEST, tl.float32),)
        total = total + (tl.zeros([BLOCK_M], tl.float32),)
    for start in tl.range(0, tokens, BLOCK_N, num_stages=1):
        # a zero the compiler cannot see through: it would keep queries and weights in registers through the loop
        zero = start // tokens
        key = start + tl.arange(0, BLOCK_N)
        scores = products(q_ptr, query + zero, stride, k_ptr, key, stride, tokens, scale, HEADS, HEAD_DIM, BLOCK_D, PRECISION)
        mixed = mixed_scores(pre_ptr + zero, scores, (key < tokens)[None, :], GROUP, HEADS)
        new_largest = ()
        new_total = ()
        for head in tl.static_range(GROUP):
            larger = tl.maximum(largest[head], tl.max(mixed[head], 1))
            new_largest = new_largest + (larger,)
            new_total = new_total + (total[head] * tl.exp(largest[head] - larger) + tl.sum(tl.exp(mixed[head] - larger[:, None]), 1),)
        largest = new_largest
        total = new_total
    rows = ()
    inverse = ()
    for head in tl.static_range(GROUP):
        rows = rows + (largest[head][:, None],)
        inverse = inverse + ((1.0 / total[head])[:, None],)
    return rows, inverse


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def talking_heads_fwd_kernel(
    qkv_ptr, pre_ptr, post_ptr, post_bias_ptr, out_ptr, tokens, stride_b, stride_n, scale, seed, keep_threshold, keep_factor,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    POST_BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    tiles = tl.cdiv(tokens, BLOCK_M)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    query = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    q_ptr = qkv_ptr + image * stride_b
    k_ptr = q_ptr + CHANNELS
    v_ptr = k_ptr + CHANNELS
    largest, inverse = row_statistics(q_ptr, k_ptr, query, stride_n, pre_ptr, tokens, scale, HEADS, HEADS, HEAD_DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
    out = ()
    for _ in tl.static_range(HEADS):
        out = out + (tl.zeros([BLOCK_M, BLOCK_D], tl.float32),)
    for start in tl.range(0, tokens, BLOCK_N, num_stages=1):
        zero = start // tokens
        key = start + tl.arange(0, BLOCK_N)
        scores = products(q_ptr, query + zero, stride_n, k_ptr, key, stride_n, tokens, scale, HEADS, HEAD_DIM, BLOCK_D, PRECISION)
        p = probabilities(pre_ptr + zero, scores, (key < tokens)[None, :], largest, inverse, HEADS, HEADS)
        sums = ()
        for head in tl.static_range(HEADS):
            weights = value_weights(post_ptr + zero, post_bias_ptr + zero, p, head, HEADS, POST_BIAS)
            if DROPOUT:
                keep = dropout_keeps(seed, image * HEADS + head, query[:, None] * tokens + key[None, :], keep_threshold)
                weights = tl.where(keep, weights * keep_factor, 0.0)
            v = load_rows(v_ptr + head * HEAD_DIM, key, stride_n, tokens, HEAD_DIM, BLOCK_D)
            sums = sums + (product(weights.to(dtype), v, PRECISION, out[head]),)
        out = sums
    d = tl.arange(0, BLOCK_D)
    out_ptr += image * tokens * CHANNELS
    for head in tl.static_range(HEADS):
        place = query[:, None] * CHANNELS + head * HEAD_DIM + d[None, :]
        tl.store(out_ptr + place, out[head].to(dtype), mask=(query < tokens)[:, None] & (d < HEAD_DIM)[None, :])


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def talking_heads_bwd_row_kernel(
    qkv_ptr, grad_ptr, pre_ptr, post_ptr, statistics_ptr, sums_ptr,
    batch, tokens, stride_b, stride_n, grad_stride_b, grad_stride_n, scale, seed, keep_threshold, keep_factor,
    GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Statistics [3, batch, HEADS, tokens]: maximum, 1 / sum, delta. Program = (image, tile, group of heads), the last fastest.

    Its sums: [HEADS, GROUP] of post_weight, [HEADS] of its bias.
    """
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    tiles = tl.cdiv(tokens, BLOCK_M)
    first = tl.program_id(0) % (HEADS // GROUP) * GROUP
    tile = tl.program_id(0) // (HEADS // GROUP)
    image = (tile // tiles).to(tl.int64)
    query = tile % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    q_ptr = qkv_ptr + image * stride_b
    k_ptr = q_ptr + CHANNELS
    v_ptr = k_ptr + CHANNELS
    grad_ptr += image * grad_stride_b
    largest, inverse = row_statistics(
        q_ptr, k_ptr, query, stride_n, pre_ptr + first * HEADS, tokens, scale, GROUP, HEADS, HEAD_DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    delta = ()
    d_bias = ()
    for _ in tl.static_range(GROUP):
        delta = delta + (tl.zeros([BLOCK_M, BLOCK_N // 2], tl.float32),)
    for _ in tl.static_range(HEADS):
        d_bias = d_bias + (tl.zeros([BLOCK_M // 2, BLOCK_N // 2], tl.float32),)
    d_post = ()
    for _ in tl.static_range(HEADS * GROUP):
        d_post = d_post + (tl.zeros([BLOCK_M // 2, BLOCK_N // 2], tl.float32),)
    for start in tl.range(0, tokens, BLOCK_N, num_stages=1):
        zero = start // tokens
        key = start + tl.arange(0, BLOCK_N)
        scores = products(q_ptr, query + zero, stride_n, k_ptr, key, stride_n, tokens, scale, HEADS, HEAD_DIM, BLOCK_D, PRECISION)
        p = probabilities(pre_ptr + zero + first * HEADS, scores, (key < tokens)[None, :], largest, inverse, GROUP, HEADS)
        grads = products(grad_ptr, query + zero, grad_stride_n, v_ptr, key, stride_n, tokens, 1.0, HEADS, HEAD_DIM, BLOCK_D, PRECISION)
        grads = dropped(grads, seed, image, query[:, None], key[None, :], tokens, keep_threshold, keep_factor, HEADS, DROPOUT)
        new_delta = ()
        new_bias = ()
        new_post = ()
        for head in tl.static_range(GROUP):
            product = p[head] * mixed_head(post_ptr + zero + first, grads, head, HEADS, True)
            new_delta = new_delta + (delta[head] + tl.sum(tl.reshape(product, [BLOCK_M, BLOCK_N // 2, 2]), 2),)
        for head in tl.static_range(HEADS):
            new_bias = new_bias + (d_bias[head] + own_sum(grads[head], BLOCK_M, BLOCK_N),)
            for other in tl.static_range(GROUP):
                new_post = new_post + (d_post[head * GROUP + other] + own_sum(grads[head] * p[other], BLOCK_M, BLOCK_N),)
        delta = new_delta
        d_bias = new_bias
        d_post = new_post
    for head in tl.static_range(GROUP):
        row_ptr = statistics_ptr + (image * HEADS + first + head) * tokens + query
        step = tl.full([], HEADS, tl.int64) * batch * tokens
        tl.store(row_ptr, tl.reshape(largest[head], [BLOCK_M]), mask=query < tokens)
        tl.store(row_ptr + step, tl.reshape(inverse[head], [BLOCK_M]), mask=query < tokens)
        tl.store(row_ptr + 2 * step, tl.sum(delta[head], 1), mask=query < tokens)
    sums_ptr += tl.program_id(0).to(tl.int64) * (HEADS * GROUP + HEADS)
    for pair in tl.static_range(HEADS * GROUP):
        tl.store(sums_ptr + pair, tl.sum(tl.sum(d_post[pair], 1), 0))
    for head in tl.static_range(HEADS):
        tl.store(sums_ptr + HEADS * GROUP + head, tl.sum(tl.sum(d_bias[head], 1), 0))


@triton.jit
def load_statistics(statistics_ptr, image, batch, first, row, tokens, GROUP: tl.constexpr, HEADS: tl.constexpr, COLUMNS: tl.constexpr):
    """What the row kernel left: maximum, 1 / sum (0 beyond the last row) and delta of GROUP heads, along one side of a tile."""
    largest = ()
    inverse = ()
    delta = ()
    step = tl.full([], HEADS, tl.int64) * batch * tokens
    for head in tl.static_range(GROUP):
        row_ptr = statistics_ptr + (image * HEADS + first + head) * tokens + row
        values = tl.load(row_ptr, row < tokens, 0.0), tl.load(row_ptr + step, row < tokens, 0.0), tl.load(row_ptr + 2 * step, row < tokens, 0.0)
        if COLUMNS:
            largest = largest + (values[0][None, :],)
            inverse = inverse + (values[1][None, :],)
            delta = delta + (values[2][None, :],)
        else:
            largest = largest + (values[0][:, None],)
            inverse = inverse + (values[1][:, None],)
            delta = delta + (values[2][:, None],)
    return largest, inverse, delta


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def talking_heads_bwd_product_kernel(
    qkv_ptr, grad_ptr, pre_ptr, post_ptr, statistics_ptr, d_qkv_ptr,
    batch, tokens, stride_b, stride_n, grad_stride_b, grad_stride_n, scale, seed, keep_threshold, keep_factor,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ of a tile of queries, or (KEYS) dK of a tile of keys, where scores are computed transposed."""
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    tiles = tl.cdiv(tokens, BLOCK_M)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    own = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    q_ptr = qkv_ptr + image * stride_b
    k_ptr = q_ptr + CHANNELS
    v_ptr = k_ptr + CHANNELS
    grad_ptr += image * grad_stride_b
    sums = ()
    for _ in tl.static_range(HEADS):
        sums = sums + (tl.zeros([BLOCK_M, BLOCK_D], tl.float32),)
    for start in tl.range(0, tokens, BLOCK_N, num_stages=1):
        zero = start // tokens
        other = start + tl.arange(0, BLOCK_N)
        if KEYS:
            scores = products(k_ptr, own + zero, stride_n, q_ptr, other, stride_n, tokens, scale, HEADS, HEAD_DIM, BLOCK_D, PRECISION)
            largest, inverse, delta = load_statistics(statistics_ptr, image, batch, 0, other, tokens, HEADS, HEADS, True)
            p = probabilities(pre_ptr + zero, scores, (own < tokens)[:, None], largest, inverse, HEADS, HEADS)
            grads = products(v_ptr, own + zero, stride_n, grad_ptr, other, grad_stride_n, tokens, 1.0, HEADS, HEAD_DIM, BLOCK_D, PRECISION)
            grads = dropped(grads, seed, image, other[None, :], own[:, None], tokens, keep_threshold, keep_factor, HEADS, DROPOUT)
        else:
            scores = products(q_ptr, own + zero, stride_n, k_ptr, other, stride_n, tokens, scale, HEADS, HEAD_DIM, BLOCK_D, PRECISION)
            largest, inverse, delta = load_statistics(statistics_ptr, image, batch, 0, own + zero, tokens, HEADS, HEADS, False)
            p = probabilities(pre_ptr + zero, scores, (other < tokens)[None, :], largest, inverse, HEADS, HEADS)
            grads = products(grad_ptr, own + zero, grad_stride_n, v_ptr, other, stride_n, tokens, 1.0, HEADS, HEAD_DIM, BLOCK_D, PRECISION)
            grads = dropped(grads, seed, image, own[:, None], other[None, :], tokens, keep_threshold, keep_factor, HEADS, DROPOUT)
        d_mixed = gradients_of_mixed(p, post_ptr + zero, grads, delta, HEADS, HEADS)
        new_sums = ()
        for head in tl.static_range(HEADS):
            d_scores = mixed_head(pre_ptr + zero, d_mixed, head, HEADS, True)
            rows = load_rows((q_ptr if KEYS else k_ptr) + head * HEAD_DIM, other, stride_n, tokens, HEAD_DIM, BLOCK_D)
            new_sums = new_sums + (product(d_scores.to(dtype), rows, PRECISION, sums[head]),)
        sums = new_sums
    d = tl.arange(0, BLOCK_D)
    d_ptr = d_qkv_ptr + image * tokens * (3 * CHANNELS) + (CHANNELS if KEYS else 0)
    for head in tl.static_range(HEADS):
        place = own[:, None] * (3 * CHANNELS) + head * HEAD_DIM + d[None, :]
        tl.store(d_ptr + place, (sums[head] * scale).to(dtype), mask=(own < tokens)[:, None] & (d < HEAD_DIM)[None, :])


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def talking_heads_bwd_mixing_kernel(
    qkv_ptr, grad_ptr, pre_ptr, post_ptr, statistics_ptr, sums_ptr,
    batch, tokens, stride_b, stride_n, grad_stride_b, grad_stride_n, scale, seed, keep_threshold, keep_factor,
    GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program = (image, tile, group of heads), the last fastest. Its sums: [GROUP, HEADS] of pre_weight."""
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    tiles = tl.cdiv(tokens, BLOCK_M)
    first = tl.program_id(0) % (HEADS // GROUP) * GROUP
    tile = tl.program_id(0) // (HEADS // GROUP)
    image = (tile // tiles).to(tl.int64)
    query = tile % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    q_ptr = qkv_ptr + image * stride_b
    k_ptr = q_ptr + CHANNELS
    v_ptr = k_ptr + CHANNELS
    grad_ptr += image * grad_stride_b
    sums = ()
    for _ in tl.static_range(GROUP * HEADS):
        sums = sums + (tl.zeros([BLOCK_M // 2, BLOCK_N // 2], tl.float32),)
    for start in tl.range(0, tokens, BLOCK_N, num_stages=1):
        zero = start // tokens
        key = start + tl.arange(0, BLOCK_N)
        scores = products(q_ptr, query + zero, stride_n, k_ptr, key, stride_n, tokens, scale, HEADS, HEAD_DIM, BLOCK_D, PRECISION)
        largest, inverse, delta = load_statistics(statistics_ptr, image, batch, first, query + zero, tokens, GROUP, HEADS, False)
        p = probabilities(pre_ptr + zero + first * HEADS, scores, (key < tokens)[None, :], largest, inverse, GROUP, HEADS)
        grads = products(grad_ptr, query + zero, grad_stride_n, v_ptr, key, stride_n, tokens, 1.0, HEADS, HEAD_DIM, BLOCK_D, PRECISION)
        grads = dropped(grads, seed, image, query[:, None], key[None, :], tokens, keep_threshold, keep_factor, HEADS, DROPOUT)
        d_mixed = gradients_of_mixed(p, post_ptr + zero + first, grads, delta, GROUP, HEADS)
        new_sums = ()
        for head in tl.static_range(GROUP):
            for other in tl.static_range(HEADS):
                new_sums = new_sums + (sums[head * HEADS + other] + own_sum(d_mixed[head] * scores[other], BLOCK_M, BLOCK_N),)
        sums = new_sums
    sums_ptr += tl.program_id(0).to(tl.int64) * (GROUP * HEADS)
    for pair in tl.static_range(GROUP * HEADS):
        tl.store(sums_ptr + pair, tl.sum(tl.sum(sums[pair], 1), 0))


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def talking_heads_bwd_value_kernel(
    qkv_ptr, grad_ptr, pre_ptr, post_ptr, post_bias_ptr, statistics_ptr, d_qkv_ptr,
    batch, tokens, stride_b, stride_n, grad_stride_b, grad_stride_n, scale, seed, keep_threshold, keep_factor,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    POST_BIAS: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dV of a tile of keys."""
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    tiles = tl.cdiv(tokens, BLOCK_M)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    key = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    q_ptr = qkv_ptr + image * stride_b
    k_ptr = q_ptr + CHANNELS
    grad_ptr += image * grad_stride_b
    sums = ()
    for _ in tl.static_range(HEADS):
        sums = sums + (tl.zeros([BLOCK_M, BLOCK_D], tl.float32),)
    for start in tl.range(0, tokens, BLOCK_N, num_stages=1):
        zero = start // tokens
        query = start + tl.arange(0, BLOCK_N)
        scores = products(k_ptr, key + zero, stride_n, q_ptr, query, stride_n, tokens, scale, HEADS, HEAD_DIM, BLOCK_D, PRECISION)
        largest, inverse, delta = load_statistics(statistics_ptr, image, batch, 0, query, tokens, HEADS, HEADS, True)
        p = probabilities(pre_ptr + zero, scores, (key < tokens)[:, None], largest, inverse, HEADS, HEADS)
        new_sums = ()
        for head in tl.static_range(HEADS):
            weights = value_weights(post_ptr + zero, post_bias_ptr + zero, p, head, HEADS, POST_BIAS)
            if DROPOUT:
                keep = dropout_keeps(seed, image * HEADS + head, query[None, :] * tokens + key[:, None], keep_threshold)
                weights = tl.where(keep, weights * keep_factor, 0.0)
            # queries beyond the last have rows of zeros here
            grad = load_rows(grad_ptr + head * HEAD_DIM, query, grad_stride_n, tokens, HEAD_DIM, BLOCK_D)
            new_sums = new_sums + (product(weights.to(dtype), grad, PRECISION, sums[head]),)
        sums = new_sums
    d = tl.arange(0, BLOCK_D)
    d_ptr = d_qkv_ptr + image * tokens * (3 * CHANNELS) + 2 * CHANNELS
    for head in tl.static_range(HEADS):
        place = key[:, None] * (3 * CHANNELS) + head * HEAD_DIM + d[None, :]
        tl.store(d_ptr + place, sums[head].to(dtype), mask=(key < tokens)[:, None] & (d < HEAD_DIM)[None, :])
