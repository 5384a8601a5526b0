// The forward of one window and head.
#pragma once
#include "window_attention/rows.h"

namespace vtk::VTK_ISA {

// One head's operands, packed: what forward and backward both need of q and k.
template <class M, class T>
struct Operands {
  typename M::Word *q, *k_columns, *k_rows, *last;
  float *q_norm, *k_norm, *product_lone;
  int64_t* row_offset;  // of packed rows, to read them as rows again

  Operands(Carver& carver, const Shape<M>& shape, bool cosine)
      : q(carver.take<typename M::Word>((size_t)shape.a_rows() * shape.a_words)),
        k_columns(carver.take<typename M::Word>((size_t)round_up(shape.steps(), W) * shape.columns)),
        k_rows(carver.take<typename M::Word>(cosine ? (size_t)shape.tokens * shape.a_words : 0)),
        last(carver.take<typename M::Word>(shape.a_words)),
        q_norm(carver.take<float>(cosine ? shape.tokens : 0)),
        k_norm(carver.take<float>(cosine ? shape.tokens : 0)),
        product_lone(carver.take<float>(shape.a_rows())),
        row_offset(carver.take<int64_t>(cosine ? shape.tokens : 0)) {
    if (carver.memory && cosine)
      for (int i = 0; i < shape.tokens; ++i) row_offset[i] = (int64_t)i * shape.a_words;
  }

  inline __attribute__((always_inline)) void pack(const Shape<M>& shape, const Rows<T>& q_rows, const Rows<T>& k_source, bool cosine) {
    const int n = shape.tokens;
    M::pack_rows(q_rows, n, shape.dim, q, shape.a_words);
    if constexpr (M::kPair == 1) {
      if (cosine) {
        M::pack_rows(k_source, n, shape.dim, k_rows, shape.a_words);
        normalise_rows(q, n, shape.a_words, q_norm);
        normalise_rows(k_rows, n, shape.a_words, k_norm);
        const Rows<float> normalised{k_rows, row_offset, nullptr};
        M::pack_columns(normalised, n, shape.dim, k_columns, shape.columns);
        if (shape.tiling.lone) memcpy(last, k_rows + (int64_t)(n - 1) * shape.a_words, shape.a_words * sizeof(float));
      }
    }
    if (!cosine) {
      M::pack_columns(k_source, n, shape.dim, k_columns, shape.columns);
      if (shape.tiling.lone) M::pack_rows(Rows<T>{k_source.base, k_source.offset + n - 1, k_source.padding}, 1, shape.dim, last, shape.a_words);
    }
    if (shape.tiling.lone) multiply_column<M>(q, shape.a_words, last, shape.a_words, n, product_lone);
  }
};

template <class M, class T>
struct Forward {
  const WindowAttention& call;
  const Shape<M>& shape;
  Operands<M, T> operands;
  typename M::Word *v, *packed;
  float *e, *shift, *inverse;

  Forward(const WindowAttention& call, const Shape<M>& shape, Carver& carver)
      : call(call),
        shape(shape),
        operands(carver, shape, call.logit_scale != nullptr),
        v(carver.take<typename M::Word>((size_t)shape.token_steps() * shape.b_words)),
        packed(carver.take<typename M::Word>((size_t)8 * shape.ld)),
        e(carver.take<float>((size_t)8 * shape.ld)),
        shift(carver.take<float>(shape.a_rows())),
        inverse(carver.take<float>(shape.a_rows())) {}

  // statistics: [2][tokens] at these two places, or null
  template <class Prefetch>
  inline __attribute__((always_inline)) void run(int head, const Window& window, const Rows<T> (&rows)[3], const float* bias, const float* bias_lone,
                                                 uint64_t item, const Destination<T>& out, float* statistics, int64_t statistics_stride, Prefetch& prefetch) {
    const bool cosine = call.logit_scale != nullptr;
    operands.pack(shape, rows[0], rows[1], cosine);
    M::pack_depth(rows[2], shape.tokens, shape.dim, v, shape.b_words);
    const Dropout dropout(call.seed, call.dropout_p, item);
    const ScoreRows<M> scores{shape, operands.q, operands.k_columns,    cosine ? call.scale * call.logit_scale[head] : call.scale,
                              bias,  bias_lone,  operands.product_lone, window};
    constexpr bool kPacked = M::kPair > 1;
    for (int row = 0, count; row < shape.tokens; row += count) {
      count = balanced(shape.tokens - row, shape.tiling.tile_rows);
      prefetch.step(count);
      const RowSums sums = exponentials<M, kPacked>(scores, row, count, e, packed);
      store_eight(shift + row, sums.shift);
      store_eight(inverse + row, sums.inverse);
      if (__builtin_expect(dropout.on, 0))
        for (int r = 0; r < count; ++r)
          for (int j = 0; j < shape.tokens; ++j) e[r * shape.ld + j] *= dropout.factor((uint32_t)((row + r) * shape.tokens + j));
      const typename M::Word* probabilities = kPacked ? packed : (const typename M::Word*)e;
      product<M, T>({probabilities, v, shape.ld / M::kPair, 1, shape.b_words, shape.token_steps(), row, 0, inverse + row, 1.0f}, count, out);
    }
    if (statistics) {
      memcpy(statistics, shift, shape.tokens * sizeof(float));
      memcpy(statistics + statistics_stride, inverse, shape.tokens * sizeof(float));
    }
  }
};

}  // namespace vtk::VTK_ISA
