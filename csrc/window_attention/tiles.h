// The register tiles of window attention: a few rows times a few vectors of columns, from product to result without
// touching memory in between.
#pragma once
#include "window_attention/arithmetic.h"
#include "window_attention/geometry.h"

namespace vtk::VTK_ISA {

// Tiles leave room for the operands: 24 of 32 accumulators with AVX-512, 12 of 16 otherwise.
constexpr int kAccumulators = W == 16 ? 24 : 12, kMaxVectors = W == 16 ? 4 : 2, kMaxRows = W == 16 ? 8 : 6;
constexpr float kMask = -100.0f;
// A row sum of exponentials inside these bounds needed no subtraction of the row's maximum: it leaves half of the
// exponent's range to the gradients and values it is multiplied with.
constexpr float kSmallestSum = 0x1p-60f, kLargestSum = 0x1p60f;

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
template <class F>
VTK_INLINE void with_tile(int rows, int vectors, F f) {
  with_constant<kMaxVectors>(vectors, [&](auto nv) __attribute__((always_inline)) {
    constexpr int kRows = kAccumulators / decltype(nv)::value < kMaxRows ? kAccumulators / decltype(nv)::value : kMaxRows;
    with_constant<kRows>(rows, [&](auto r) __attribute__((always_inline)) { f(r, nv); });
  });
}

// How N columns fall into vectors, and rows into tiles.
struct Tiling {
  int vectors;       // of a row of scores
  bool lone;         // one more column than the vectors hold: computed apart, as padding would cost a whole vector
  int tile_vectors;  // of a tile, at most
  int tile_rows;     // of a tile, at most

  explicit Tiling(int tokens) {
    lone = tokens % W == 1 && tokens > W;
    vectors = (tokens - lone + W - 1) / W;
    const int widest = vectors % 3 == 0 && kMaxVectors >= 3 ? 3 : kMaxVectors;
    const int tiles = (vectors + widest - 1) / widest;
    tile_vectors = (vectors + tiles - 1) / tiles;
    tile_rows = kAccumulators / tile_vectors < kMaxRows ? kAccumulators / tile_vectors : kMaxRows;
  }
};
// rows of the next tile, so that all tiles but the last ones have equal rows and the last are one less
VTK_INLINE int balanced(int left, int at_most) {
  const int tiles = (left + at_most - 1) / at_most;
  return (left + tiles - 1) / tiles;
}

struct Mask {  // of the keys a tile's columns stand for; null code: no mask in this window
  const int32_t* code;
  const float* penalty;
  const int32_t* row_code;
};

enum class Scores { kRaw, kExp, kExpPacked };

template <class M>
struct ScoreTile {
  const typename M::Word *a, *b;
  int64_t lda, ldb;
  int steps;
  float scale;
  const float* bias;  // [rows][ldb]
  Mask mask;
  float* out;  // [rows][ld_out]: scores, or their exponentials
  int64_t ld_out;
  typename M::Word* packed;  // [rows][ld_packed]: exponentials as an operand
  int64_t ld_packed;
  V* sums;  // [rows] of the exponentials, added to
};

template <class M, int R, int NV, Scores MODE>
VTK_NOINLINE void score_tile(const ScoreTile<M>& t) {
  V s[R][NV];
  VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int v = 0; v < NV; ++v) s[r][v] = zero();
  multiply<M, R, NV>(s, t.a, t.lda, 1, t.b, t.ldb, t.steps);
  const V scale = set1(t.scale);
  VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int v = 0; v < NV; ++v) s[r][v] = fma(s[r][v], scale, load(t.bias + r * t.ldb + v * W));
  if (__builtin_expect(t.mask.code != nullptr, 0)) {
    VTK_UNROLL for (int r = 0; r < R; ++r) {
      const I code = set1i(t.mask.row_code[r]);
      VTK_UNROLL for (int v = 0; v < NV; ++v) s[r][v] += (code == loadi(t.mask.code + v * W) ? zero() : set1(kMask)) + load(t.mask.penalty + v * W);
    }
  }
  VTK_UNROLL for (int r = 0; r < R; ++r) {
    if constexpr (MODE == Scores::kRaw) {
      VTK_UNROLL for (int v = 0; v < NV; ++v) store(t.out + r * t.ld_out + v * W, s[r][v]);
    } else {
      V sum = t.sums[r];
      VTK_UNROLL for (int v = 0; v < NV; ++v) {
        const V e = exp(s[r][v]);
        sum += e;
        if constexpr (MODE == Scores::kExp)
          store(t.out + r * t.ld_out + v * W, e);
        else
          M::store_values(t.packed + r * t.ld_packed + v * W / M::kPair, e);
      }
      t.sums[r] = sum;
    }
  }
}

template <class M>
struct GradTile {  // dP = dO V^T
  const typename M::Word *a, *b;
  int64_t lda, ldb;
  int steps;
  const float* e;  // [rows][ld]
  float* out;      // [rows][ld]
  int64_t ld;
  V* sums;  // [rows] of e * dP, added to
};

template <class M, int R, int NV>
VTK_NOINLINE void grad_tile(const GradTile<M>& t) {
  V g[R][NV];
  VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int v = 0; v < NV; ++v) g[r][v] = zero();
  multiply<M, R, NV>(g, t.a, t.lda, 1, t.b, t.ldb, t.steps);
  VTK_UNROLL for (int r = 0; r < R; ++r) {
    V sum = t.sums[r];
    VTK_UNROLL for (int v = 0; v < NV; ++v) {
      sum = fma(g[r][v], load(t.e + r * t.ld + v * W), sum);
      store(t.out + r * t.ld + v * W, g[r][v]);
    }
    t.sums[r] = sum;
  }
}

// Where rows of a product over tokens go: one slice of head_dim values in each token's row.
template <class T>
struct Destination {
  T* base;               // the head's slice of pixel 0
  const int64_t* pixel;  // [rows] -1: padding
  int64_t stride;        // elements of a pixel
  int dim;
  bool stream;     // past the caches: only whole, aligned lines of large results
  float* padding;  // [dim] gets the sum of padded rows; null where they are zero or not wanted
  float* buffer;   // [rows][ld_buffer] instead of all that, where rows need more work
  int64_t ld_buffer;
};

template <class M>
struct ProductTile {
  const typename M::Word *a, *b;
  int64_t lda, ka, ldb;
  int steps, row, column;
  const float* factor;  // [rows] of each row, times `scale`
  float scale;
};

template <class T>
VTK_INLINE void put(const Destination<T>& to, int row, int column, V v) {
  const int count = column + W <= to.dim ? W : to.dim - column;
  if (to.buffer) return store(to.buffer + row * to.ld_buffer + column, v);
  const int64_t pixel = to.pixel[row];
  if (__builtin_expect(pixel < 0, 0)) {
    if (to.padding) store_row(to.padding + column, load_row(to.padding + column, count) + v, count);
    return;
  }
  T* p = to.base + pixel * to.stride + column;
  if (to.stream)
    stream_row(p, v);
  else
    store_row(p, v, count);
}

template <class M, class T, int R, int NV>
VTK_NOINLINE void product_tile(const ProductTile<M>& t, const Destination<T>& to) {
  V s[R][NV];
  VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int v = 0; v < NV; ++v) s[r][v] = zero();
  multiply<M, R, NV>(s, t.a, t.lda, t.ka, t.b, t.ldb, t.steps);
  // the common case without masks and without a decision for each vector
  const bool whole = !to.buffer && t.column + NV * W <= to.dim;
  VTK_UNROLL for (int r = 0; r < R; ++r) {
    const V factor = set1(t.factor ? t.factor[r] * t.scale : t.scale);
    VTK_UNROLL for (int v = 0; v < NV; ++v) s[r][v] *= factor;
    const int64_t pixel = to.pixel[t.row + r];
    if (__builtin_expect(whole && pixel >= 0, 1)) {
      T* p = to.base + pixel * to.stride + t.column;
      if (to.stream)
        VTK_UNROLL for (int v = 0; v < NV; ++v) stream_row(p + v * W, s[r][v]);
      else
        VTK_UNROLL for (int v = 0; v < NV; ++v) store_row(p + v * W, s[r][v], W);
    } else {
      VTK_UNROLL for (int v = 0; v < NV; ++v) put(to, t.row + r, t.column + v * W, s[r][v]);
    }
  }
}

// `rows` rows from t.row on, all columns of the head
template <class M, class T>
VTK_INLINE void product(ProductTile<M> t, int rows, const Destination<T>& to) {
  const typename M::Word* b = t.b;
  for (int column = 0; column < to.dim; column += 2 * W) {
    t.column = column;
    t.b = b + column;
    const int vectors = column + W < to.dim ? 2 : 1;
    with_constant<2>(vectors, [&](auto nv) __attribute__((always_inline)) {
      with_constant<kMaxRows>(rows, [&](auto r) __attribute__((always_inline)) { product_tile<M, T, decltype(r)::value, decltype(nv)::value>(t, to); });
    });
  }
}

}  // namespace vtk::VTK_ISA
