// Rows of one window and head, from scores to normalised probabilities: shared by the forward and the backward.
#pragma once
#include "common/philox.h"
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
      : tokens(call.window_h * call.window_w),
        dim(call.head_dim),
        tiling(tokens),
        columns(tiling.vectors * W),
        ld(spread(round_up(columns + (tiling.lone ? W : 0), 16))),
        a_words(round_up((dim + M::kPair - 1) / M::kPair, W)),
        b_words(round_up(dim, W)) {}
  // rows a multiple of 512 bytes apart would put a column of the matrix into an eighth of the cache
  static int spread(int ld) { return ld % 128 == 0 ? ld + 16 : ld; }
  int steps() const { return dim / M::kPair; }                            // of a product over the head dimension
  int token_steps() const { return (tokens + M::kPair - 1) / M::kPair; }  // of a product over tokens
  int a_rows() const { return round_up(tokens, 8) + 8; }                  // room for reading whole groups of rows
};

// The table of one head, read as the product tiles need it: bias of query (yi, xi) and key (yj, xj) is at
// flipped[(yi - yj + Wh - 1) * span + (Ww - 1 - xi) + xj], so that the keys of a window's row lie side by side.
struct FlippedTable {
  int span, rows;
  float* entries;

  FlippedTable(const WindowAttention& call, Carver& carver)
      : span(2 * call.window_w - 1), rows(2 * call.window_h - 1), entries(carver.take<float>((size_t)rows * span + W)) {}
  int64_t at(const WindowAttention& call, int yi, int xi, int yj) const { return (int64_t)(yi - yj + call.window_h - 1) * span + call.window_w - 1 - xi; }
};

// The position bias of one head, as the score tiles read it: rows padded to whole vectors with a score that vanishes.
// `rows` is followed by room for a vector.
template <class M>
VTK_INLINE void expand_bias(const WindowAttention& call, const Shape<M>& shape, int head, const FlippedTable& table, float* rows, float* lone) {
  constexpr float kVanish = -1e30f;
  const int n = shape.tokens;
  if (call.bias_table)
    for (int y = 0; y < table.rows; ++y)
      for (int x = 0; x < table.span; ++x)
        table.entries[y * table.span + table.span - 1 - x] = call.bias_table[((int64_t)y * table.span + x) * call.heads + head];
  for (int yi = 0, i = 0; yi < call.window_h; ++yi)
    for (int xi = 0; xi < call.window_w; ++xi, ++i) {
      float* row = rows + (int64_t)i * shape.columns;
      const float* dense = call.bias ? call.bias + ((int64_t)head * n + i) * n : nullptr;
      if (call.bias_table) {
        for (int yj = 0; yj < call.window_h; ++yj) {
          const float* segment = table.entries + table.at(call, yi, xi, yj);
          // whole vectors: what is too much is overwritten by the next segment, or the next row
          for (int x = 0; x < call.window_w; x += W) store(row + yj * call.window_w + x, load(segment + x));
        }
        if (shape.tiling.lone) lone[i] = table.entries[table.at(call, yi, xi, call.window_h - 1) + call.window_w - 1];
      } else {
        for (int j = 0; j < n && j < shape.columns; ++j) row[j] = dense ? dense[j] : 0.0f;
        if (shape.tiling.lone) lone[i] = dense ? dense[n - 1] : 0.0f;
      }
      for (int j = n; j < shape.columns; ++j) row[j] = kVanish;
    }
}

// The inverse: add the gradient in that form to the table's entries, or to a dense [tokens][tokens] matrix.
template <class M>
VTK_INLINE void reduce_bias(const WindowAttention& call, const Shape<M>& shape, const FlippedTable& table, const float* rows, const float* lone, float* to) {
  const int n = shape.tokens;
  if (!call.bias_table) {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n && j < shape.columns; ++j) to[(int64_t)i * n + j] += rows[(int64_t)i * shape.columns + j];
      if (shape.tiling.lone) to[(int64_t)i * n + n - 1] += lone[i];
    }
    return;
  }
  memset(table.entries, 0, (size_t)table.rows * table.span * sizeof(float));
  for (int dy = 1 - call.window_h; dy < call.window_h; ++dy)
    for (int xi = 0; xi < call.window_w; ++xi) {
      float* entries = table.entries + table.at(call, dy, xi, 0);
      const int first = dy > 0 ? dy : 0, last = dy < 0 ? call.window_h + dy : call.window_h;
      for (int x = 0; x < call.window_w; x += W) {
        const int count = x + W <= call.window_w ? W : call.window_w - x;
        V sum = zero();
        for (int yi = first; yi < last; ++yi) {
          const int key = (yi - dy) * call.window_w + x, within = key + count <= shape.columns ? count : shape.columns - key;
          sum += load_row(rows + (int64_t)(yi * call.window_w + xi) * shape.columns + key, within);
        }
        store_row(entries + x, load_row(entries + x, count) + sum, count);
      }
      // the lone column is the window's last key: no row below has it
      if (shape.tiling.lone && dy <= 0) entries[call.window_w - 1] += lone[(call.window_h - 1 + dy) * call.window_w + xi];
    }
  for (int y = 0; y < table.rows; ++y)
    for (int x = 0; x < table.span; ++x) to[y * table.span + x] += table.entries[y * table.span + table.span - 1 - x];
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
  // scores of the lone column for 8 rows; those past the last token mean nothing
  inline __attribute__((always_inline)) Eight lone(int row) const {
    Eight scores = load_eight(product_lone + row) * scale + load_eight(bias_lone + row);
    if (__builtin_expect(window.masked, 0)) {
      const int last = shape.tokens - 1;
      for (int r = 0; r < 8; ++r) scores[r] += (window.code[row + r] == window.code[last] ? 0.0f : kMask) + window.penalty[last];
    }
    return scores;
  }
};

template <class M, Scores MODE>
VTK_INLINE void score_tiles(const ScoreRows<M>& in, int row, int rows, float* out, typename M::Word* packed, V* sums) {
  const Shape<M>& shape = in.shape;
  for (int v = 0, width; v < shape.tiling.vectors; v += width) {
    width = balanced(shape.tiling.vectors - v, shape.tiling.tile_vectors);
    const ScoreTile<M> tile{in.q + (int64_t)row * shape.a_words,
                            in.k + v * W,
                            shape.a_words,
                            shape.columns,
                            shape.steps(),
                            in.scale,
                            in.bias + (int64_t)row * shape.columns + v * W,
                            in.mask(row, v * W),
                            out + v * W,
                            shape.ld,
                            packed + v * W / M::kPair,
                            shape.ld / M::kPair,
                            sums};
    with_tile(rows, width, [&](auto r, auto nv) __attribute__((always_inline)) { score_tile<M, decltype(r)::value, decltype(nv)::value, MODE>(tile); });
  }
}

struct RowSums {
  Eight shift;    // what was subtracted from the scores of each row
  Eight inverse;  // 1 / the sum of its exponentials
  Eight lone;     // the exponential in its lone column
};

// Exponentials of `rows` <= 8 rows of scores into e [rows][ld] or, PACKED, into the operand `packed`, lone column included.
// Nothing is subtracted unless a sum shows that it had to be: exponentials neither overflow nor vanish for the scores of
// any sane network, and the maximum would cost a tenth of the forward.
template <class M, bool PACKED>
VTK_INLINE RowSums exponentials(const ScoreRows<M>& in, int row, int rows, float* e, typename M::Word* packed) {
  const Shape<M>& shape = in.shape;
  alignas(64) V sums[8];
  VTK_UNROLL for (int r = 0; r < 8; ++r) sums[r] = zero();
  score_tiles<M, PACKED ? Scores::kExpPacked : Scores::kExp>(in, row, rows, e, packed, sums);
  RowSums result{};
  Eight total = sum_rows(sums);
  if (shape.tiling.lone) {
    result.lone = exp_eight(in.lone(row));
    total += result.lone;
  }
  total = first_rows(rows, total, 1.0f);
  if (__builtin_expect(!all_between(total, kSmallestSum, kLargestSum), 0)) {
    score_tiles<M, Scores::kRaw>(in, row, rows, e, packed, sums);
    if (shape.tiling.lone) result.lone = in.lone(row);
    for (int r = 0; r < rows; ++r) {
      float* scores = e + r * shape.ld;
      V top = set1(shape.tiling.lone ? result.lone[r] : -__builtin_inff());
      for (int c = 0; c < shape.columns; c += W) top = larger(top, load(scores + c));
      const float shift = largest(top);
      V sum_of_row = zero();
      for (int c = 0; c < shape.columns; c += W) {
        const V value = exp(load(scores + c) - set1(shift));
        store(scores + c, value);
        sum_of_row += value;
        if constexpr (PACKED) M::store_values(packed + (r * shape.ld + c) / M::kPair, value);
      }
      result.shift[r] = shift;
      if (shape.tiling.lone) result.lone[r] = exp(set1(result.lone[r] - shift))[0];
      total[r] = sum(sum_of_row) + (shape.tiling.lone ? result.lone[r] : 0.0f);
    }
  }
  result.inverse = 1.0f / total;
  if (shape.tiling.lone) {
    if constexpr (PACKED)
      M::store_column(packed + shape.columns / M::kPair, shape.ld / M::kPair, result.lone, rows);
    else
      Float32::store_column(e + shape.columns, shape.ld, result.lone, rows);
  }
  return result;
}

}  // namespace vtk::VTK_ISA
