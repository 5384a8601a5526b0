// Register tiles of matrix products in floats: a few rows times a few vectors of columns.
#pragma once
#include "common/simd.h"

namespace vtk::VTK_ISA {

// Tiles leave room for the operands: 24 of 32 accumulators with AVX-512, 12 of 16 otherwise.
constexpr int kTileRows = W == 16 ? 8 : 6, kTileVectors = W == 16 ? 3 : 2;

template <int N>
struct Int {
  static constexpr int value = N;
};
// f(Int<n>) for a run-time n <= MAX
template <int MAX, class F>
VTK_INLINE void with_constant(int n, F f) {
  if constexpr (MAX > 1)
    if (n < MAX) return with_constant<MAX - 1>(n, f);
  f(Int<MAX>{});
}

VTK_INLINE int round_up(int n, int to) { return (n + to - 1) / to * to; }
VTK_INLINE int divide_up(int n, int by) { return (n + by - 1) / by; }
// size of the next piece, so that all pieces but the last ones are equal and the last are one less
VTK_INLINE int balanced(int left, int at_most) { return divide_up(left, divide_up(left, at_most)); }

// sums[r][v] += A[r][k] * B[k][v] over `steps`; A's rows are lda apart, its columns ka apart
template <int R, int NV>
VTK_INLINE void multiply(V (&sums)[R][NV], const float* a, int64_t lda, int64_t ka, const float* b, int64_t ldb, int steps) {
#pragma GCC unroll 2
  for (int k = 0; k < steps; ++k) {
    V line[NV];
    VTK_UNROLL for (int v = 0; v < NV; ++v) line[v] = load(b + k * ldb + v * W);
    VTK_UNROLL for (int r = 0; r < R; ++r) {
      const V number = set1(a[r * lda + k * ka]);
      VTK_UNROLL for (int v = 0; v < NV; ++v) sums[r][v] = fma(number, line[v], sums[r][v]);
    }
  }
}

struct Product {
  const float* a;
  int64_t lda, ka;
  const float* b;
  int64_t ldb;
  int steps;
};

// Where a product goes: `columns` columns of each row, after adding `addend` where there is one.
template <class T>
struct Result {
  T* base;
  int64_t ld;
  const float* addend;
  int64_t ld_addend;
};

template <int R, int NV, class T>
VTK_NOINLINE void product_tile(const Product& p, const Result<T>& to, int columns) {
  V s[R][NV];
  VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int v = 0; v < NV; ++v) s[r][v] = zero();
  multiply<R, NV>(s, p.a, p.lda, p.ka, p.b, p.ldb, p.steps);
  if (to.addend) VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int v = 0; v < NV; ++v) s[r][v] += load(to.addend + r * to.ld_addend + v * W);
  if (__builtin_expect(columns >= NV * W, 1)) {
    VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int v = 0; v < NV; ++v) store_row(to.base + r * to.ld + v * W, s[r][v], W);
  } else {
    // unrolled, rare as it is: an array indexed at run time would live in memory throughout
    VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int v = 0; v < NV; ++v)
        store_row(to.base + r * to.ld + v * W, s[r][v], columns - v * W < W ? columns - v * W : W);
  }
}

// `rows` rows and `columns` columns. Columns are the outer loop: a tile's part of B stays in the first-level cache while rows pass by.
template <class T>
VTK_INLINE void product(const Product& p, int rows, int columns, const Result<T>& to) {
  const int vectors = divide_up(columns, W);
  for (int v = 0, width; v < vectors; v += width) {
    width = balanced(vectors - v, kTileVectors);
    for (int row = 0, count; row < rows; row += count) {
      count = balanced(rows - row, kTileRows);
      const Product part{p.a + row * p.lda, p.lda, p.ka, p.b + v * W, p.ldb, p.steps};
      const Result<T> at{to.base + row * to.ld + v * W, to.ld, to.addend ? to.addend + row * to.ld_addend + v * W : nullptr, to.ld_addend};
      with_constant<kTileVectors>(width, [&](auto nv) __attribute__((always_inline)) {
        with_constant<kTileRows>(
            count, [&](auto r) __attribute__((always_inline)) { product_tile<decltype(r)::value, decltype(nv)::value, T>(part, at, columns - v * W); });
      });
    }
  }
}

// ---- rows of tokens as operands ---------------------------------------------------------------------------------------

// [n][d] of any storage type -> dst[d][ld], ld a multiple of W and >= n, zero where there is no token
template <class T>
VTK_INLINE void pack_transposed(const T* rows, int64_t stride, int n, int d, float* dst, int64_t ld) {
  for (int t = 0; t < n; t += W)
    for (int c = 0; c < d; c += W) {
      V block[W];
      const int width = c + W <= d ? W : d - c;
      if (width == W && t + W <= n) {
        VTK_UNROLL for (int i = 0; i < W; ++i) block[i] = load_row(rows + (t + i) * stride + c, W);
      } else {
        VTK_UNROLL for (int i = 0; i < W; ++i) block[i] = t + i < n ? load_row(rows + (t + i) * stride + c, width) : zero();
      }
      transpose(block);
      VTK_UNROLL for (int i = 0; i < W; ++i) if (i < width) store(dst + (c + i) * ld + t, block[i]);
    }
}

// [n][heads * d] -> dst[heads][n][ld], zero from d to ld (a multiple of W)
template <class T>
VTK_INLINE void pack_heads(const T* rows, int64_t stride, int n, int heads, int d, float* dst, int ld) {
  for (int i = 0; i < n; ++i) {
    const T* row = rows + i * stride;
    for (int h = 0; h < heads; ++h)
      for (int c = 0; c < ld; c += W) store(dst + ((int64_t)h * n + i) * ld + c, load_row(row + h * d + c, c + W <= d ? W : d - c));
  }
}

}  // namespace vtk::VTK_ISA
