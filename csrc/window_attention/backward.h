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
  float* grad_lone;
  float *inverse, *subtract;  // of the current rows: 1 / sum, and the sum of P dP
  float *d_q, *d_k;

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
    inverse = carver.take<float>(8);
    subtract = carver.take<float>(8);
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
    const Dropout dropout(call.seed, call.dropout_p, item);
    const ScoreRows<M> scores{shape, operands.q, operands.k_columns, scale, bias, bias_lone, operands.product_lone, window};
    const Destination<T> to_q = cosine ? buffered(to[0], d_q) : to[0], to_k = cosine ? buffered(to[1], d_k) : to[1];
    for (int row = 0, count; row < n; row += count) {
      count = rows_of_tile(n - row);
      prefetch.step(count);
      if constexpr (M::kPair == 1) {
        e = p + (int64_t)row * shape.ld;
        g = ds + (int64_t)row * shape.ld;
      }
      const RowSums sums = exponentials<M, false>(scores, row, count, e, nullptr);
      store_eight(inverse, sums.inverse);
      if constexpr (M::kPair == 1) normalise_gradient(row, count);
      const Eight lone = grad_tiles(row, count, sums, dropout);
      if (shape.tiling.lone) lone_gradients(row, count, sums, lone, d_bias_lone ? d_bias_lone + row : nullptr);
      score_gradients(row, count, dropout, d_bias ? d_bias + (int64_t)row * shape.columns : nullptr);
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
    for (int r = 0; r < count; ++r) {
      float* values = (float*)grad + (int64_t)(row + r) * shape.a_words;
      for (int c = 0; c < shape.a_words; c += W) store(values + c, load(values + c) * set1(inverse[r]));
    }
  }

  // g = dP (dropped where P was), and subtract[r] = sum over row r of P dP (with floats both divided by the row's sum);
  // returns dP in the lone column
  inline __attribute__((always_inline)) Eight grad_tiles(int row, int count, const RowSums& rows, const Dropout& dropout) {
    alignas(64) V sums[8];
    VTK_UNROLL for (int r = 0; r < 8; ++r) sums[r] = zero();
    for (int v = 0, width; v < shape.tiling.vectors; v += width) {
      width = balanced(shape.tiling.vectors - v, shape.tiling.tile_vectors);
      const GradTile<M> tile{
          grad + (int64_t)row * shape.a_words, v_columns + v * W, shape.a_words, shape.columns, shape.steps(), e + v * W, g + v * W, shape.ld, sums};
      with_tile(count, width, [&](auto r, auto nv) __attribute__((always_inline)) { grad_tile<M, decltype(r)::value, decltype(nv)::value>(tile); });
    }
    Eight lone{}, total = sum_rows(sums);
    if (shape.tiling.lone) {
      lone = load_eight(grad_lone + row);
      if constexpr (M::kPair == 1) lone *= rows.inverse;
    }
    if (__builtin_expect(dropout.on, 0)) {
      for (int r = 0; r < count; ++r) {
        const uint32_t first = (uint32_t)((row + r) * shape.tokens), last = shape.tokens - 1;
        total[r] = 0.0f;
        for (int j = 0; j < shape.tokens - shape.tiling.lone; ++j) {
          g[r * shape.ld + j] *= dropout.factor(first + j);
          total[r] += g[r * shape.ld + j] * e[r * shape.ld + j];
        }
        if (shape.tiling.lone) lone[r] *= dropout.factor(first + last);
      }
    }
    if (shape.tiling.lone) total += lone * rows.lone;
    store_eight(subtract, total * rows.inverse);
    return lone;
  }

  // dS = P (dP - sum of P dP), stored as operand and added to the bias gradient; with pairs, P too
  inline __attribute__((always_inline)) void score_gradients(int row, int count, const Dropout& dropout, float* d_bias) {
    if constexpr (M::kPair == 1) {
      for (int r = 0; r < count; ++r) score_gradient<false>(r, d_bias, [&](int c, V, V ds) __attribute__((always_inline)) { store(g + r * shape.ld + c, ds); });
      if (__builtin_expect(dropout.on, 0)) drop_probabilities(row, count, dropout);
    } else {
      for (int r = 0; r < count; r += 2) paired_score_gradients(row, r, r + 1 < count, d_bias);
    }
  }

  // put(column, P, dS) for each vector of row r; P as it is in e, or normalised
  template <bool NORMALISE, class Put>
  inline __attribute__((always_inline)) void score_gradient(int r, float* d_bias, Put put) {
    const V sum = set1(subtract[r]), factor = set1(inverse[r]);
    const float *e_row = e + r * shape.ld, *g_row = g + r * shape.ld;
    float* bias_row = d_bias ? d_bias + (int64_t)r * shape.columns : nullptr;
    for (int c = 0; c < shape.columns; c += W) {
      const V p_values = NORMALISE ? load(e_row + c) * factor : load(e_row + c), ds_values = p_values * (load(g_row + c) - sum);
      if (bias_row) store(bias_row + c, load(bias_row + c) + ds_values);
      put(c, p_values, ds_values);
    }
  }

  // rows r and r + 1, which share words; g serves to keep dS of the first until the second is there
  inline __attribute__((always_inline)) void paired_score_gradients(int row, int r, bool second, float* d_bias) {
    Word *p_row = p + (int64_t)(row + r) / 2 * shape.ld, *ds_row = ds + (int64_t)(row + r) / 2 * shape.ld;
    Word *first_ds = ds_rows + r * shape.ld / 2, *second_ds = first_ds + shape.ld / 2;
    float *first_p = e + r * shape.ld, *first_g = g + r * shape.ld;
    score_gradient<true>(r, d_bias, [&](int c, V p_values, V ds_values) __attribute__((always_inline)) {
      store(first_p + c, p_values);
      store(first_g + c, ds_values);
    });
    auto put_pair = [&](int c, V p_values, V ds_values) __attribute__((always_inline)) {
      const V other_p = load(first_p + c), other_ds = load(first_g + c);
      M::store_pairs(p_row + c, other_p, p_values);
      M::store_pairs(ds_row + c, other_ds, ds_values);
      M::store_values(first_ds + c / 2, other_ds);
      M::store_values(second_ds + c / 2, ds_values);
    };
    if (second)
      score_gradient<true>(r + 1, d_bias, put_pair);
    else
      for (int c = 0; c < shape.columns; c += W) put_pair(c, zero(), zero());
  }

  inline __attribute__((always_inline)) void lone_gradients(int row, int count, const RowSums& rows, Eight grad_of_p, float* d_bias_lone) {
    const Eight p_values = M::kPair > 1 ? rows.lone * rows.inverse : rows.lone;
    const Eight ds_values = first_rows(count, p_values * (grad_of_p - load_eight(subtract)), 0.0f);
    if (d_bias_lone) store_eight(d_bias_lone, load_eight(d_bias_lone) + ds_values);
    if constexpr (M::kPair == 1) {
      M::store_column(g + shape.columns, shape.ld, ds_values, count);
    } else {
      const int64_t at = (int64_t)row / 2 * shape.ld + shape.columns;
      M::store_paired_column(p + at, shape.ld, first_rows(count, p_values, 0.0f), count);
      M::store_paired_column(ds + at, shape.ld, ds_values, count);
      M::store_column(ds_rows + shape.columns / 2, shape.ld / 2, ds_values, count);
    }
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
