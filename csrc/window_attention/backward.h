// The backward of one window and head. Scores are recomputed by the operations of the forward, in its order, so that
// probabilities sum to one exactly as they did there, whatever the size of the logits.
#pragma once
#include "window_attention/forward.h"

namespace vtk::VTK_ISA {

template <class M, class T>
struct Backward {
  using Word = typename M::Word;
  const WindowAttention& call;
  const Shape<M>& shape;
  Operands<M, T> operands;
  Word *v_columns, *v_last, *grad, *k_depth, *q_depth, *grad_depth;
  // P and dS as operands of the products over tokens; ds_rows: dS of the current rows, where `ds` is paired the other way
  Word *p, *ds, *ds_rows;
  float *e, *g;  // exponentials and dP of the current rows
  float *grad_lone, *shift, *inverse, *d_q, *d_k;

  Backward(const WindowAttention& call, const Shape<M>& shape, Carver& carver)
      : call(call), shape(shape), operands(carver, shape, call.logit_scale != nullptr) {
    const size_t rows = (size_t)shape.a_rows() * shape.a_words, columns = (size_t)round_up(shape.steps(), W) * shape.columns;
    const size_t depth = (size_t)shape.token_steps() * shape.b_words, scores = (size_t)(shape.token_steps() + 1) * shape.ld;
    const bool pairs = M::kPair > 1, cosine = call.logit_scale != nullptr;
    v_columns = carver.take<Word>(columns);
    v_last = carver.take<Word>(shape.a_words);
    grad = carver.take<Word>(rows);
    // with floats a packed row serves as either operand
    k_depth = carver.take<Word>(cosine ? 0 : depth);
    q_depth = carver.take<Word>(pairs ? depth : 0);
    grad_depth = carver.take<Word>(pairs ? depth : 0);
    p = carver.take<Word>(scores);
    ds = carver.take<Word>(scores);
    ds_rows = carver.take<Word>(pairs ? (size_t)8 * shape.ld : 0);
    e = pairs ? carver.take<float>((size_t)8 * shape.ld) : (float*)p;
    g = pairs ? carver.take<float>((size_t)8 * shape.ld) : (float*)ds;
    grad_lone = carver.take<float>(shape.a_rows());
    shift = carver.take<float>(shape.a_rows());
    inverse = carver.take<float>(shape.a_rows());
    d_q = carver.take<float>(cosine ? (size_t)shape.tokens * shape.b_words : 0);
    d_k = carver.take<float>(cosine ? (size_t)shape.tokens * shape.b_words : 0);
  }

  // d_bias: [tokens][columns] and its lone column, added to, or null
  template <class Prefetch>
  inline __attribute__((always_inline)) void run(int head, const Window& window, const Rows<T> (&rows)[3], const Rows<T>& grad_rows, const float* bias,
                                                 const float* bias_lone, uint64_t item, const Destination<T> (&to)[3], float* d_bias, float* d_bias_lone,
                                                 float* d_logit_scale, Prefetch& prefetch) {
    const bool cosine = call.logit_scale != nullptr;
    const int n = shape.tokens;
    const float scale = cosine ? call.scale * call.logit_scale[head] : call.scale;
    pack(rows, grad_rows, cosine);
    const Dropout dropout(call, item);
    const ScoreRows<M> scores{shape, operands.q, operands.k_columns, scale, bias, bias_lone, operands.product_lone, window};
    const Destination<T> to_q = cosine ? buffered(to[0], d_q) : to[0], to_k = cosine ? buffered(to[1], d_k) : to[1];
    for (int row = 0, count; row < n; row += count) {
      count = rows_of_tile(n - row);
      prefetch.step(count);
      if constexpr (M::kPair == 1) {
        e = p + (int64_t)row * shape.ld;
        g = ds + (int64_t)row * shape.ld;
      }
      exponentials<M, false>(scores, row, count, e, nullptr, shift + row, inverse + row);
      if constexpr (M::kPair == 1) normalise_gradient(row, count);
      grad_tiles(row, count, dropout);
      score_gradients(row, count, dropout, d_bias ? d_bias + (int64_t)row * shape.columns : nullptr, d_bias_lone ? d_bias_lone + row : nullptr);
      const Word* operand = M::kPair > 1 ? ds_rows : ds + (int64_t)row * shape.ld;
      product<M, T>(
          {operand, cosine ? operands.k_rows : k_depth, shape.ld / M::kPair, 1, shape.b_words, shape.token_steps(), row, 0, nullptr, cosine ? 1.0f : scale},
          count, to_q);
    }
    const Word* grad_operand = M::kPair > 1 ? grad_depth : grad;
    const Word* q_operand = M::kPair > 1 ? q_depth : operands.q;
    for (int row = 0, count; row < n; row += count) {
      count = balanced(n - row, kMaxRows);
      product<M, T>({p + row, grad_operand, 1, shape.ld, shape.b_words, shape.token_steps(), row, 0, nullptr, 1.0f}, count, to[2]);
      product<M, T>({ds + row, q_operand, 1, shape.ld, shape.b_words, shape.token_steps(), row, 0, nullptr, cosine ? 1.0f : scale}, count, to_k);
    }
    if constexpr (M::kPair == 1) {
      if (cosine) *d_logit_scale += call.scale * through_normalisation(to, scale);
    }
  }

 private:
  // pairs of rows share a word of `p` and `ds`: only the last tile may end between them
  inline __attribute__((always_inline)) int rows_of_tile(int left) const {
    if (M::kPair == 1) return balanced(left, shape.tiling.tile_rows);
    return left < shape.tiling.tile_rows ? left : shape.tiling.tile_rows;
  }

  inline __attribute__((always_inline)) Destination<T> buffered(const Destination<T>& to, float* buffer) const {
    Destination<T> result = to;
    result.buffer = buffer;
    result.ld_buffer = shape.b_words;
    return result;
  }

  inline __attribute__((always_inline)) void pack(const Rows<T> (&rows)[3], const Rows<T>& grad_rows, bool cosine) {
    const int n = shape.tokens, dim = shape.dim;
    operands.pack(shape, rows[0], rows[1], cosine);
    M::pack_rows(grad_rows, n, dim, grad, shape.a_words);
    M::pack_columns(rows[2], n, dim, v_columns, shape.columns);
    if (!cosine) M::pack_depth(rows[1], n, dim, k_depth, shape.b_words);
    if constexpr (M::kPair > 1) {
      M::pack_depth(rows[0], n, dim, q_depth, shape.b_words);
      M::pack_depth(grad_rows, n, dim, grad_depth, shape.b_words);
    }
    if (shape.tiling.lone) {
      M::pack_rows(Rows<T>{rows[2].base, rows[2].offset + n - 1, rows[2].padding}, 1, dim, v_last, shape.a_words);
      multiply_column<M>(grad, shape.a_words, v_last, shape.a_words, n, grad_lone);
    }
  }

  // With floats, exponentials serve as P, and dO carries the 1 / sum of its row instead: what follows is then
  // P dO, dP / sum and dS without another pass over P. Pairs of bf16 round less if P is normalised before rounding.
  inline __attribute__((always_inline)) void normalise_gradient(int row, int count) {
    for (int r = row; r < row + count; ++r) {
      for (int c = 0; c < shape.a_words; c += W)
        store((float*)grad + (int64_t)r * shape.a_words + c, load((float*)grad + (int64_t)r * shape.a_words + c) * set1(inverse[r]));
      grad_lone[r] *= inverse[r];
    }
  }

  // g = dP (dropped where P was), and shift[row] = sum over a row of P * dP (divided by the row's sum, with floats)
  inline __attribute__((always_inline)) void grad_tiles(int row, int count, const Dropout& dropout) {
    alignas(64) V sums[8];
    alignas(64) float total[8];
    VTK_UNROLL for (int r = 0; r < 8; ++r) sums[r] = zero();
    for (int v = 0, width; v < shape.tiling.vectors; v += width) {
      width = balanced(shape.tiling.vectors - v, shape.tiling.tile_vectors);
      const GradTile<M> tile{
          grad + (int64_t)row * shape.a_words, v_columns + v * W, shape.a_words, shape.columns, shape.steps(), e + v * W, g + v * W, shape.ld, sums};
      with_tile(count, width, [&](auto r, auto nv) __attribute__((always_inline)) { grad_tile<M, decltype(r)::value, decltype(nv)::value>(tile); });
    }
    if (shape.tiling.lone)
      for (int r = 0; r < count; ++r) g[r * shape.ld + shape.columns] = grad_lone[row + r];
    if (__builtin_expect(dropout.on, 0)) {
      for (int r = 0; r < count; ++r) {
        total[r] = 0.0f;
        for (int j = 0; j < shape.tokens; ++j) {
          float& value = g[r * shape.ld + j];
          value *= dropout.factor((uint32_t)((row + r) * shape.tokens + j));
          total[r] += value * e[r * shape.ld + j];
        }
      }
    } else {
      sum_rows(sums, total);
      if (shape.tiling.lone)
        for (int r = 0; r < count; ++r) total[r] += g[r * shape.ld + shape.columns] * e[r * shape.ld + shape.columns];
    }
    for (int r = 0; r < 8; ++r) shift[row + r] = total[r] * inverse[row + r];
  }

  // dS = P (dP - sum of P dP), stored as operand and added to the bias gradient; with pairs, P too
  inline __attribute__((always_inline)) void score_gradients(int row, int count, const Dropout& dropout, float* d_bias, float* d_bias_lone) {
    if constexpr (M::kPair == 1)
      float_score_gradients(row, count, d_bias, d_bias_lone);
    else
      paired_score_gradients(row, count, d_bias, d_bias_lone);
    if (__builtin_expect(dropout.on, 0)) drop_probabilities(row, count, dropout);
  }

  inline __attribute__((always_inline)) void float_score_gradients(int row, int count, float* d_bias, float* d_bias_lone) {
    for (int r = 0; r < count; ++r) {
      const V subtract = set1(shift[row + r]);
      const float* e_row = e + r * shape.ld;
      float *g_row = g + r * shape.ld, *sum = d_bias ? d_bias + (int64_t)r * shape.columns : nullptr;
      for (int c = 0; c < shape.columns; c += W) {
        const V gradient = load(e_row + c) * (load(g_row + c) - subtract);
        store(g_row + c, gradient);
        if (sum) store(sum + c, load(sum + c) + gradient);
      }
      if (!shape.tiling.lone) continue;
      g_row[shape.columns] = e_row[shape.columns] * (g_row[shape.columns] - shift[row + r]);
      if (sum) d_bias_lone[r] += g_row[shape.columns];
    }
  }

  inline __attribute__((always_inline)) void paired_score_gradients(int row, int count, float* d_bias, float* d_bias_lone) {
    for (int r = 0; r < count; r += 2) {
      const bool second = r + 1 < count;
      Word *p_row = p + (int64_t)(row + r) / 2 * shape.ld, *ds_row = ds + (int64_t)(row + r) / 2 * shape.ld;
      for (int c = 0; c < shape.columns; c += W) {
        const Pair first = gradient_at(row, r, c, d_bias), next = second ? gradient_at(row, r + 1, c, d_bias) : Pair{zero(), zero()};
        M::store_pairs(p_row + c, first.p, next.p);
        M::store_pairs(ds_row + c, first.ds, next.ds);
        M::store_values(ds_rows + (r * shape.ld + c) / 2, first.ds);
        M::store_values(ds_rows + ((r + 1) * shape.ld + c) / 2, next.ds);
      }
      if (!shape.tiling.lone) continue;
      const int lone = shape.columns;
      float pair[2][2] = {};
      for (int i = 0; i <= second; ++i) {
        pair[0][i] = e[(r + i) * shape.ld + lone] * inverse[row + r + i];
        pair[1][i] = pair[0][i] * (g[(r + i) * shape.ld + lone] - shift[row + r + i]);
        if (d_bias) d_bias_lone[r + i] += pair[1][i];
        M::store_values(ds_rows + ((r + i) * shape.ld + lone) / 2, load_row(&pair[1][i], 1));
      }
      M::store_values(p_row + lone, load_row(pair[0], 2));
      M::store_values(ds_row + lone, load_row(pair[1], 2));
    }
  }

  struct Pair {
    V p, ds;
  };
  inline __attribute__((always_inline)) Pair gradient_at(int row, int r, int c, float* d_bias) const {
    const V probability = load(e + r * shape.ld + c) * set1(inverse[row + r]);
    const V gradient = probability * (load(g + r * shape.ld + c) - set1(shift[row + r]));
    if (d_bias) {
      float* sum_so_far = d_bias + (int64_t)r * shape.columns + c;
      store(sum_so_far, load(sum_so_far) + gradient);
    }
    return {probability, gradient};
  }

  inline __attribute__((always_inline)) void drop_probabilities(int row, int count, const Dropout& dropout) {
    if constexpr (M::kPair == 1)
      for (int r = 0; r < count; ++r)
        for (int j = 0; j < shape.tokens; ++j) e[r * shape.ld + j] *= dropout.factor((uint32_t)((row + r) * shape.tokens + j));
  }

  // Cosine attention: from gradients of scale * q/|q| and k/|k| to those of q and k; returns the gradient of the scale,
  // sum of (q/|q|) . d(q/|q|).
  inline __attribute__((always_inline)) float through_normalisation(const Destination<T> (&to)[3], float scale) {
    float d_scale = 0.0f;
    for (int i = 0; i < shape.tokens; ++i) {
      d_scale += project(i, operands.q, operands.q_norm, d_q, scale, to[0]);
      project(i, operands.k_rows, operands.k_norm, d_k, scale, to[1]);
    }
    return d_scale;
  }
  // (d - unit (unit . d)) * scale / norm; no part is taken away where the norm was too small to divide by
  inline __attribute__((always_inline)) float project(int row, const float* units, const float* norm, const float* gradients, float scale,
                                                      const Destination<T>& to) {
    const float *unit = units + (int64_t)row * shape.a_words, *d = gradients + (int64_t)row * shape.b_words;
    V products = zero();
    for (int c = 0; c < shape.b_words; c += W) products = fma(load(unit + c), load(d + c), products);
    const float along = sum(products);
    const V part = set1(norm[row] > kSmallestNorm ? along : 0.0f), factor = set1(scale / norm[row]);
    for (int c = 0; c < shape.dim; c += W) put(to, row, c, (load(d + c) - load(unit + c) * part) * factor);
    return along;
  }
};

}  // namespace vtk::VTK_ISA
