// Rows of one window and head, from scores to normalised probabilities: shared by the forward and the backward.
#pragma once
#include "window_attention/tiles.h"

namespace vtk::VTK_ISA {

constexpr float kSmallestNorm = 1e-12f;  // cosine attention divides by no less

// What a row of this call looks like, in vectors and words.
template <class M>
struct Shape {
  int tokens, dim;
  Tiling tiling;
  int columns;  // that the vectors hold, padding included
  int ld;       // floats of a row of scores
  int a_words;  // words of a row of q, as A operand
  int b_words;  // words of a row of v, as B operand

  explicit Shape(const WindowAttention& call)
      : tokens(call.window_h * call.window_w), dim(call.head_dim), tiling(tokens), columns(tiling.vectors * W),
        // an odd number of cache lines: columns of the matrix then spread over all sets of the cache
        ld(((columns + (tiling.lone ? W : 0) + 15) / 16 | 1) * 16), a_words(round_up((dim + M::kPair - 1) / M::kPair, W)), b_words(round_up(dim, W)) {}
  int steps() const { return dim / M::kPair; }          // of a product over the head dimension
  int token_steps() const { return (tokens + M::kPair - 1) / M::kPair; }  // of a product over tokens
  int a_rows() const { return round_up(tokens, 8) + 8; }  // room for reading whole groups of rows
};

// The position bias of one head, as the score tiles read it: rows padded to whole vectors with a score that vanishes.
template <class M>
VTK_INLINE void expand_bias(const WindowAttention& call, const Shape<M>& shape, int head, float* rows, float* lone) {
  constexpr float kVanish = -1e30f;
  const int n = shape.tokens, span = 2 * call.window_w - 1;
  for (int i = 0; i < n; ++i) {
    float* row = rows + (int64_t)i * shape.columns;
    const int yi = i / call.window_w, xi = i % call.window_w;
    auto put_at = [&](int j, float value) __attribute__((always_inline)) {
      if (j < shape.columns) row[j] = value;
      else lone[i] = value;
    };
    if (call.bias_table) {
      for (int yj = 0, j = 0; yj < call.window_h; ++yj) {
        const float* entry = call.bias_table + (int64_t)((yi - yj + call.window_h - 1) * span + xi + call.window_w - 1) * call.heads + head;
        for (int xj = 0; xj < call.window_w; ++xj, ++j, entry -= call.heads) put_at(j, *entry);
      }
    } else {
      const float* dense = call.bias ? call.bias + ((int64_t)head * n + i) * n : nullptr;
      for (int j = 0; j < n; ++j) put_at(j, dense ? dense[j] : 0.0f);
    }
    for (int j = n; j < shape.columns; ++j) row[j] = kVanish;
  }
}

// The inverse: add the gradient in that form to the table's entries, or to a dense [tokens][tokens] matrix.
template <class M>
VTK_INLINE void reduce_bias(const WindowAttention& call, const Shape<M>& shape, const float* rows, const float* lone, float* to) {
  const int n = shape.tokens, span = 2 * call.window_w - 1;
  for (int i = 0; i < n; ++i) {
    const float* row = rows + (int64_t)i * shape.columns;
    const int yi = i / call.window_w, xi = i % call.window_w;
    for (int yj = 0, j = 0; yj < call.window_h; ++yj) {
      float* entry = call.bias_table ? to + (yi - yj + call.window_h - 1) * span + xi + call.window_w - 1 : to + (int64_t)i * n + j;
      const int step = call.bias_table ? -1 : 1;
      for (int xj = 0; xj < call.window_w; ++xj, ++j) entry[step * xj] += j < shape.columns ? row[j] : lone[i];
    }
  }
}

// Divide rows of floats by their norms; what was divided by goes to norm[row].
VTK_INLINE void normalise_rows(float* rows, int n, int ld, float* norm) {
  for (int i = 0; i < n; ++i) {
    float* row = rows + (int64_t)i * ld;
    V squares = zero();
    for (int c = 0; c < ld; c += W) squares = fma(load(row + c), load(row + c), squares);
    const float length = __builtin_sqrtf(sum(squares));
    norm[i] = length > kSmallestNorm || length != length ? length : kSmallestNorm;
    const V inverse = set1(1.0f / norm[i]);
    for (int c = 0; c < ld; c += W) store(row + c, load(row + c) * inverse);
  }
}

// Philox4x32-10: the first word for counter (element, item) under the 64-bit key `seed`.
VTK_INLINE uint32_t philox(uint64_t seed, uint32_t element, uint64_t item) {
  uint32_t c0 = element, c1 = (uint32_t)item, c2 = (uint32_t)(item >> 32), c3 = 0, k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0;
}

struct Dropout {
  uint64_t seed, item;  // item: the window and head, among all of the call
  uint32_t threshold;   // a word below it keeps its element
  float kept;           // 1 / (1 - p)
  bool on;

  Dropout(const WindowAttention& call, uint64_t item)
      : seed(call.seed), item(item), kept((float)(1.0 / (1.0 - (double)call.dropout_p))), on(call.dropout_p > 0.0f) {
    const double threshold_exact = (1.0 - (double)call.dropout_p) * 4294967296.0 + 0.5;
    threshold = threshold_exact >= 4294967295.0 ? 4294967295u : (uint32_t)threshold_exact;
  }
  inline __attribute__((always_inline)) float factor(uint32_t element) const { return philox(seed, element, item) < threshold ? kept : 0.0f; }
};

// Everything about one window and head that the rows of its scores need.
template <class M>
struct ScoreRows {
  const Shape<M>& shape;
  const typename M::Word *q, *k;  // [tokens][a_words], [steps][columns]
  float scale;
  const float *bias, *bias_lone;  // as expand_bias made them
  const float* product_lone;      // [tokens] q . (last key), where the tiling has a lone column
  const Window& window;

  Mask mask(int row, int column) const {
    if (!window.masked) return {nullptr, nullptr, nullptr};
    return {window.code + column, window.penalty + column, window.code + row};
  }
  // score of the lone column for one row
  float lone(int row) const {
    const int last = shape.tokens - 1;
    float s = product_lone[row] * scale + bias_lone[row];
    if (window.masked) s += (window.code[row] == window.code[last] ? 0.0f : kMask) + window.penalty[last];
    return s;
  }
};

template <class M, Scores MODE>
VTK_INLINE void score_tiles(const ScoreRows<M>& in, int row, int rows, float* out, typename M::Word* packed, V* sums) {
  const Shape<M>& shape = in.shape;
  for (int v = 0, width; v < shape.tiling.vectors; v += width) {
    width = balanced(shape.tiling.vectors - v, shape.tiling.tile_vectors);
    const ScoreTile<M> tile{in.q + (int64_t)row * shape.a_words, in.k + v * W, shape.a_words, shape.columns, shape.steps(), in.scale,
                            in.bias + (int64_t)row * shape.columns + v * W, in.mask(row, v * W), out + v * W, shape.ld,
                            packed + v * W / M::kPair, shape.ld / M::kPair, sums};
    with_tile(rows, width, [&](auto r, auto nv) __attribute__((always_inline)) { score_tile<M, decltype(r)::value, decltype(nv)::value, MODE>(tile); });
  }
}

// Exponentials of `rows` <= 8 rows of scores into e [rows][ld] (or, PACKED, into the operand `packed`), the lone column
// included; shift[r] is what was subtracted first and inverse[r] = 1 / (sum of row r).
// Nothing is subtracted unless a sum shows that it had to be: exponentials neither overflow nor vanish for the scores of
// any sane network, and the maximum would cost a tenth of the forward.
template <class M, bool PACKED>
VTK_INLINE void exponentials(const ScoreRows<M>& in, int row, int rows, float* e, typename M::Word* packed, float* shift, float* inverse) {
  const Shape<M>& shape = in.shape;
  const int lone_at = shape.columns;
  alignas(64) V sums[8];
  alignas(64) float total[8], lone[16];
  VTK_UNROLL for (int r = 0; r < 8; ++r) sums[r] = zero();
  score_tiles<M, PACKED ? Scores::kExpPacked : Scores::kExp>(in, row, rows, e, packed, sums);
  sum_rows(sums, total);
  if (shape.tiling.lone) {
    for (int r = 0; r < 16; ++r) lone[r] = r < rows ? in.lone(row + r) : 0.0f;
    for (int r = 0; r < 8; r += W) store(lone + r, exp(load(lone + r)));
    for (int r = 0; r < rows; ++r) total[r] += lone[r];
  }
  bool safe = true;
  for (int r = 0; r < rows; ++r) safe &= total[r] > kSmallestSum && total[r] < kLargestSum;
  for (int r = 0; r < rows; ++r) shift[r] = 0.0f;
  if (__builtin_expect(!safe, 0)) {
    score_tiles<M, Scores::kRaw>(in, row, rows, e, packed, sums);
    for (int r = 0; r < rows; ++r) {
      float* scores = e + r * shape.ld;
      if (shape.tiling.lone) lone[r] = in.lone(row + r);
      V top = set1(shape.tiling.lone ? lone[r] : -__builtin_inff());
      for (int c = 0; c < shape.columns; c += W) top = larger(top, load(scores + c));
      shift[r] = largest(top);
      V sum_of_row = zero();
      for (int c = 0; c < shape.columns; c += W) {
        const V value = exp(load(scores + c) - set1(shift[r]));
        store(scores + c, value);
        sum_of_row += value;
        if constexpr (PACKED) M::store_values(packed + (r * shape.ld + c) / M::kPair, value);
      }
      if (shape.tiling.lone) lone[r] = exp(set1(lone[r] - shift[r]))[0];
      total[r] = sum(sum_of_row) + (shape.tiling.lone ? lone[r] : 0.0f);
    }
  }
  for (int r = 0; r < rows; ++r) inverse[r] = 1.0f / total[r];
  if (shape.tiling.lone)
    for (int r = 0; r < rows; ++r) {
      if constexpr (PACKED)
        M::store_values(packed + (r * shape.ld + lone_at) / M::kPair, load_row(lone + r, 1));
      else
        e[r * shape.ld + lone_at] = lone[r];
    }
}

}  // namespace vtk::VTK_ISA
