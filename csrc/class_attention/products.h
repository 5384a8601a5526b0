// The two products everything here is made of, as register tiles over rows of floats in memory:
//   dots: every row of A times every row of B, both walked along their length;
//   mix:  rows that are sums of other rows, each times a coefficient.
// An output is summed in the order of its depth whatever the tile it falls into: cutting the work otherwise changes no bit.
#pragma once
#include "common/simd.h"

namespace vtk::VTK_ISA {

// Tiles leave room for the operands: 24 of 32 accumulators with AVX-512, 12 of 16 otherwise.
constexpr int kAccumulators = W == 16 ? 24 : 12, kMost = W == 16 ? 8 : 4;

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

VTK_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Loaded once: the compiler would rather load it anew for each multiplication it serves.
VTK_INLINE V in_register(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__AVX2__)
  asm("" : "+x"(v));
#endif
  return v;
}

// The first N of eight
template <int N>
VTK_INLINE void store_first(float* p, Eight v) {
  if constexpr (N == 8) return store_eight(p, v);
#if defined(__AVX512F__)
  if constexpr (N > 4) return _mm256_mask_storeu_ps(p, (__mmask8)((1u << N) - 1), (__m256)v);
#endif
  alignas(32) float memory[8];
  store_eight(memory, v);
  memcpy(p, memory, N * sizeof(float));
}

struct Dots {
  const float* a;  // [rows][depth], lda apart
  int64_t lda;
  const float* b;  // [columns][depth], ldb apart
  int64_t ldb;
  int depth;
  float scale;
  float* out;  // [rows][columns], ldo apart
  int64_t ldo;
  bool far;  // A comes from memory: fetch the next rows ahead
};

template <int R, int M, bool AHEAD>
VTK_INLINE void dot_tile(const Dots& d, int64_t row, int column, const char* ahead) {
  V sums[R][8];
  VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int m = 0; m < 8; ++m) sums[r][m] = zero();
  const float *a = d.a + row * d.lda, *b = d.b + column * d.ldb;
  const int64_t lda = d.lda, ldb = d.ldb;
  int c = 0;
  for (; c + W <= d.depth; c += W) {
    if constexpr (AHEAD) VTK_UNROLL for (int r = 0; r < R; ++r) __builtin_prefetch(ahead + (r * lda + c) * (int64_t)sizeof(float), 0, 2);
    V x[R];
    VTK_UNROLL for (int r = 0; r < R; ++r) x[r] = in_register(load(a + r * lda + c));
    VTK_UNROLL for (int m = 0; m < M; ++m) {
      const V y = in_register(load(b + m * ldb + c));
      VTK_UNROLL for (int r = 0; r < R; ++r) sums[r][m] = fma(x[r], y, sums[r][m]);
    }
  }
  if (c < d.depth) {
    const int rest = d.depth - c;
    V x[R];
    VTK_UNROLL for (int r = 0; r < R; ++r) x[r] = load_row(a + r * lda + c, rest);
    VTK_UNROLL for (int m = 0; m < M; ++m) {
      const V y = load_row(b + m * ldb + c, rest);
      VTK_UNROLL for (int r = 0; r < R; ++r) sums[r][m] = fma(x[r], y, sums[r][m]);
    }
  }
  float* out = d.out + row * d.ldo + column;
  if constexpr (M > 4) {
    VTK_UNROLL for (int r = 0; r < R; ++r) store_first<M>(out + r * d.ldo, sum_rows(sums[r]) * d.scale);
  } else {
    // two rows fill the eight sums
    VTK_UNROLL for (int r = 0; r < R; r += 2) {
      V both[8];
      VTK_UNROLL for (int m = 0; m < 4; ++m) {
        both[m] = sums[r][m];
        both[4 + m] = r + 1 < R ? sums[r + 1 < R ? r + 1 : r][m] : zero();
      }
      alignas(32) float memory[8];
      store_eight(memory, sum_rows(both) * d.scale);
      memcpy(out + r * d.ldo, memory, M * sizeof(float));
      if (r + 1 < R) memcpy(out + (r + 1) * d.ldo, memory + 4, M * sizeof(float));
    }
  }
}

// Rows of A that meet all columns before the next ones are read: they stay in the second-level cache.
constexpr int64_t kStripBytes = 96 << 10;

// out[i][j] = scale * (row i of A) . (row j of B)
VTK_NOINLINE void dots(const Dots& d, int64_t rows, int columns) {
  const int64_t row_bytes = (int64_t)d.depth * sizeof(float), fit = kStripBytes / row_bytes / 24 * 24, strip = fit > 24 ? fit : 24;
  for (int64_t begin = 0; begin < rows; begin += strip) {
    const int64_t end = least(rows, begin + strip);
    for (int j = 0, count; j < columns; j += count) {
      const int groups = (columns - j + kMost - 1) / kMost;
      count = (columns - j + groups - 1) / groups;
      with_constant<kMost>(count, [&](auto m) __attribute__((always_inline)) {
        constexpr int M = decltype(m)::value, R = kAccumulators / M < kMost ? kAccumulators / M : kMost;
        if (rows < R) {
          for (int64_t i = begin; i < end; ++i) dot_tile<1, M, false>(d, i, j, nullptr);
          return;
        }
        for (int64_t i = begin; i < end; i += R) {
          // the last tile overlaps the one before it: the same sums once more
          const int64_t row = least(i, rows - R);
          if (d.far && j == 0)
            dot_tile<R, M, true>(d, row, j, (const char*)(d.a + least(row + 2 * R, rows - R) * d.lda));
          else
            dot_tile<R, M, false>(d, row, j, nullptr);
        }
      });
    }
  }
}

struct Term {
  const float* a;  // coefficient of row k in output row i: a[i * row + k * step]
  int64_t row, step;
  const float* x;  // [steps][columns], ldx apart
  int64_t ldx, steps;
};

struct Mix {
  Term terms[2];
  int count;
  float scale;
  float* out;  // [rows][columns], ldo apart
  int64_t ldo;
  bool stream;  // past the caches: every column a whole vector, every row aligned
};

template <int R, int NV, bool WHOLE>
VTK_INLINE void mix_tile(const Mix& d, int64_t row, int64_t column, int width) {
  V sums[R][NV];
  VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int v = 0; v < NV; ++v) sums[r][v] = zero();
  for (int t = 0; t < d.count; ++t) {
    const Term& term = d.terms[t];
    const float *a = term.a + row * term.row, *x = term.x + column;
    const int64_t next_row = term.row;
    for (int64_t k = 0; k < term.steps; ++k, a += term.step, x += term.ldx) {
      V line[NV];
      VTK_UNROLL for (int v = 0; v < NV; ++v) line[v] = WHOLE ? in_register(load(x + v * W)) : load_row(x + v * W, width);
      VTK_UNROLL for (int r = 0; r < R; ++r) {
        const V factor = set1(a[r * next_row]);
        VTK_UNROLL for (int v = 0; v < NV; ++v) sums[r][v] = fma(factor, line[v], sums[r][v]);
      }
    }
  }
  const V scale = set1(d.scale);
  float* out = d.out + row * d.ldo + column;
  if (WHOLE && d.stream) {
    VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int v = 0; v < NV; ++v) stream_row(out + r * d.ldo + v * W, sums[r][v] * scale);
  } else {
    VTK_UNROLL for (int r = 0; r < R; ++r) VTK_UNROLL for (int v = 0; v < NV; ++v) {
      if (WHOLE)
        store(out + r * d.ldo + v * W, sums[r][v] * scale);
      else
        store_row(out + r * d.ldo + v * W, sums[r][v] * scale, width);
    }
  }
}

// out[i][c] = scale * sum over the terms and k of a[i][k] * x[k][c]
VTK_NOINLINE void mix(const Mix& d, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i += kMost)
    with_constant<kMost>((int)least(kMost, rows - i), [&](auto r) __attribute__((always_inline)) {
      constexpr int R = decltype(r)::value, NV = R * 6 <= kAccumulators ? 6 : 3;
      int64_t c = 0;
      for (; c + NV * W <= columns; c += NV * W) mix_tile<R, NV, true>(d, i, c, W);
      const int vectors = (int)(columns - c) / W;
      if constexpr (NV > 1)
        if (vectors) {
          with_constant<NV - 1>(vectors, [&](auto nv) __attribute__((always_inline)) { mix_tile<R, decltype(nv)::value, true>(d, i, c, W); });
          c += vectors * W;
        }
      if (c < columns) mix_tile<R, 1, false>(d, i, c, (int)(columns - c));
    });
}

}  // namespace vtk::VTK_ISA
