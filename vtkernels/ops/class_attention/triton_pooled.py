"""Pooled attention's kernels: the forward by tiles of queries, the backward once by queries and once by keys."""

import triton
import triton.language as tl

from vtkernels._core.triton_parts import dropout_keeps, product

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def row_tile(ptr, row, d, rows, stride, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of one image and head, 0 beyond the last row and channel."""
    mask = (row < rows)[:, None]
    if DIM != BLOCK_D:
        mask = mask & (d < DIM)[None, :]
    return tl.load(ptr + row.to(tl.int64)[:, None] * stride + d[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(ptr, values, row, d, rows, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    mask = (row < rows)[:, None]
    if DIM != BLOCK_D:
        mask = mask & (d < DIM)[None, :]
    tl.store(ptr + row.to(tl.int64)[:, None] * DIM + d[None, :], values, mask=mask)


@triton.jit
def keep_tile(seed, item, query, key, keys, keep_threshold, keep_factor):
    """Dropout's factor, [queries, keys]."""
    return tl.where(dropout_keeps(seed, item, query[:, None] * keys + key[None, :], keep_threshold), keep_factor, 0.0)


@triton.jit
def score_tile(q, k, key, keys, scale, PRECISION: tl.constexpr):
    """[queries, keys], -inf beyond the last key."""
    return tl.where((key < keys)[None, :], product(q, k, PRECISION, TRANSPOSED=True) * scale, float("-inf"))


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def pooled_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, statistics_ptr, heads, queries, keys, tiles, items, scale, seed, keep_threshold, keep_factor,
    q_stride_b, q_stride_h, q_stride_m, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program = (image, head, tile of queries)."""
    item = (tl.program_id(0) // tiles).to(tl.int64)
    image, head = item // heads, item % heads
    query = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    q = row_tile(q_ptr + image * q_stride_b + head * q_stride_h, query, d, queries, q_stride_m, DIM, BLOCK_D)
    k_ptr += image * k_stride_b + head * k_stride_h
    v_ptr += image * v_stride_b + head * v_stride_h
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in tl.range(0, keys, BLOCK_N, num_stages=STAGES):
        key = first + tl.arange(0, BLOCK_N)
        scores = score_tile(q, row_tile(k_ptr, key, d, keys, k_stride_n, DIM, BLOCK_D), key, keys, scale, PRECISION)
        higher = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp2((largest - higher) * LOG2E)
        p = tl.exp2(tl.fma(scores, LOG2E, -(higher * LOG2E)[:, None]))
        total = total * shrink + tl.sum(p, 1)
        if DROPOUT:
            p *= keep_tile(seed, item, query, key, keys, keep_threshold, keep_factor)
        v = row_tile(v_ptr, key, d, keys, v_stride_n, DIM, BLOCK_D)
        sums = product(p.to(v.dtype), v, PRECISION, sums * shrink[:, None])
        largest = higher
    inverse = 1.0 / total
    store_rows(out_ptr + item * queries * DIM, (sums * inverse[:, None]).to(out_ptr.dtype.element_ty), query, d, queries, DIM, BLOCK_D)
    tl.store(statistics_ptr + item * queries + query, largest, mask=query < queries)
    tl.store(statistics_ptr + (items + item) * queries + query, inverse, mask=query < queries)


@triton.jit
def gradient_tile(
    q, k, v, d_out, mean, largest, inverse, query, key, keys, scale, item, seed, keep_threshold, keep_factor,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the values were weighted with, and the gradient of the scores; [queries, keys]."""
    scores = score_tile(q, k, key, keys, scale, PRECISION)
    p = tl.exp2(tl.fma(scores, LOG2E, -(largest * LOG2E)[:, None])) * inverse[:, None]
    d_p = product(d_out, v, PRECISION, TRANSPOSED=True)
    kept = p
    if DROPOUT:
        factor = keep_tile(seed, item, query, key, keys, keep_threshold, keep_factor)
        kept, d_p = p * factor, d_p * factor
    return kept, p * (d_p - mean[:, None])


@triton.jit
def query_tile(
    q_ptr, grad_ptr, out_ptr, statistics_ptr, item, items, query, d, queries, q_stride_m, grad_stride_m, DIM: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Of a tile of queries: rows, the output's gradient, the mean of d_p under p, and the saved statistics (0 beyond the last query)."""
    q = row_tile(q_ptr, query, d, queries, q_stride_m, DIM, BLOCK_D)
    d_out = row_tile(grad_ptr, query, d, queries, grad_stride_m, DIM, BLOCK_D)
    out = row_tile(out_ptr + item * queries * DIM, query, d, queries, DIM, DIM, BLOCK_D)
    mean = tl.sum(d_out.to(tl.float32) * out.to(tl.float32), 1)
    largest = tl.load(statistics_ptr + item * queries + query, mask=query < queries, other=0.0)
    inverse = tl.load(statistics_ptr + (items + item) * queries + query, mask=query < queries, other=0.0)
    return q, d_out, mean, largest, inverse


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def pooled_attention_bwd_query_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, out_ptr, statistics_ptr, d_q_ptr, heads, queries, keys, tiles, items, scale, seed, keep_threshold, keep_factor,
    q_stride_b, q_stride_h, q_stride_m, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    grad_stride_b, grad_stride_h, grad_stride_m,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program = (image, head, tile of queries): gradients of the queries."""
    item = (tl.program_id(0) // tiles).to(tl.int64)
    image, head = item // heads, item % heads
    query = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    q, d_out, mean, largest, inverse = query_tile(
        q_ptr + image * q_stride_b + head * q_stride_h, grad_ptr + image * grad_stride_b + head * grad_stride_h, out_ptr, statistics_ptr,
        item, items, query, d, queries, q_stride_m, grad_stride_m, DIM, BLOCK_D,
    )  # fmt: skip
    k_ptr += image * k_stride_b + head * k_stride_h
    v_ptr += image * v_stride_b + head * v_stride_h
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in tl.range(0, keys, BLOCK_N, num_stages=STAGES):
        key = first + tl.arange(0, BLOCK_N)
        k = row_tile(k_ptr, key, d, keys, k_stride_n, DIM, BLOCK_D)
        v = row_tile(v_ptr, key, d, keys, v_stride_n, DIM, BLOCK_D)
        _, d_s = gradient_tile(q, k, v, d_out, mean, largest, inverse, query, key, keys, scale, item, seed, keep_threshold, keep_factor, DROPOUT, PRECISION)
        sums = product(d_s.to(k.dtype), k, PRECISION, sums)
    store_rows(d_q_ptr + item * queries * DIM, (sums * scale).to(d_q_ptr.dtype.element_ty), query, d, queries, DIM, BLOCK_D)


@triton.jit(do_not_specialize=["seed", "keep_threshold"])
def pooled_attention_bwd_key_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, out_ptr, statistics_ptr, d_k_ptr, d_v_ptr, heads, queries, keys, tiles, items, scale, seed, keep_threshold, keep_factor,
    q_stride_b, q_stride_h, q_stride_m, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    grad_stride_b, grad_stride_h, grad_stride_m,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program = (image, head, tile of keys): gradients of keys and values."""
    item = (tl.program_id(0) // tiles).to(tl.int64)
    image, head = item // heads, item % heads
    key = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    k = row_tile(k_ptr + image * k_stride_b + head * k_stride_h, key, d, keys, k_stride_n, DIM, BLOCK_D)
    v = row_tile(v_ptr + image * v_stride_b + head * v_stride_h, key, d, keys, v_stride_n, DIM, BLOCK_D)
    q_ptr += image * q_stride_b + head * q_stride_h
    grad_ptr += image * grad_stride_b + head * grad_stride_h
    d_k, d_v = tl.zeros((BLOCK_N, BLOCK_D), tl.float32), tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in tl.range(0, queries, BLOCK_M, num_stages=STAGES):
        query = first + tl.arange(0, BLOCK_M)
        q, d_out, mean, largest, inverse = query_tile(
            q_ptr, grad_ptr, out_ptr, statistics_ptr, item, items, query, d, queries, q_stride_m, grad_stride_m, DIM, BLOCK_D
        )
        kept, d_s = gradient_tile(q, k, v, d_out, mean, largest, inverse, query, key, keys, scale, item, seed, keep_threshold, keep_factor, DROPOUT, PRECISION)
        d_v = product(tl.trans(kept.to(v.dtype)), d_out, PRECISION, d_v)
        d_k = product(tl.trans(d_s.to(k.dtype)), q, PRECISION, d_k)
    store_rows(d_k_ptr + item * keys * DIM, (d_k * scale).to(d_k_ptr.dtype.element_ty), key, d, keys, DIM, BLOCK_D)
    store_rows(d_v_ptr + item * keys * DIM, d_v.to(d_v_ptr.dtype.element_ty), key, d, keys, DIM, BLOCK_D)
