// Rows of scores of all heads: mixing, softmax and their gradients. A row of one head lies `stride` floats behind that of
// the head before. What one row of all heads takes stays in the first-level cache from step to step.
#pragma once
#include "common/philox.h"
#include "talking_heads_attention/kernel.h"
#include "talking_heads_attention/tiles.h"

namespace vtk::VTK_ISA {

// A row sum of exponentials inside these bounds needed no subtraction of the row's maximum.
constexpr float kSmallestSum = 0x1p-60f, kLargestSum = 0x1p60f;
// Heads are mixed in groups of R outputs, R the largest divisor of their number up to this.
constexpr int kMostOutputs = 8;

struct Shape {
  int tokens, heads, dim;
  int vectors;     // of a row of scores
  int whole;       // of them without padding
  int ld;          // floats of a row of scores
  int dim_ld;      // floats of a row of one head of q, k, v
  int block_rows;  // queries that go through together
  int group;       // R
  float kept[W];   // 1 for the keys of the last vector, 0 for padding

  explicit Shape(const TalkingHeads& call)
      : tokens(call.tokens), heads(call.heads), dim(call.head_dim), vectors(divide_up(tokens, W)), whole(tokens / W), dim_ld(round_up(dim, W)) {
    // rows a multiple of 512 bytes apart would put a column of the matrix into an eighth of the cache
    ld = vectors * W % 128 == 0 ? vectors * W + 16 : vectors * W;
    // scores of the block, and their gradients, stay in the second-level cache
    const bool large = (int64_t)heads * ld * (2 * kTileRows) * (int64_t)sizeof(float) > (256 << 10);
    block_rows = large ? kTileRows : 2 * kTileRows;
    for (group = kMostOutputs; heads % group; --group) {
    }
    for (int i = 0; i < W; ++i) kept[i] = i < tokens % W ? 1.0f : 0.0f;
  }
  int64_t head_scores() const { return (int64_t)block_rows * ld; }
};

// Weights as the kernels read them; whole vectors of weights are read past the last one.
struct Mixing {
  const float *pre, *pre_back;    // scale * weight, and its transpose
  const float *post, *post_back;  // weight, and its transpose
  const float* post_bias;
};

// put(last, i, column, sum) for each output i of R and each vector of keys, sum = sum over heads g of weight[i][g] * in[g]
template <int R, int NV, bool LAST, class Put>
VTK_INLINE void mix_tile(const float* weight, int heads, const float* in, int64_t stride, int column, const Put& put) {
  V s[R][NV];
  VTK_UNROLL for (int i = 0; i < R; ++i) VTK_UNROLL for (int v = 0; v < NV; ++v) s[i][v] = zero();
  multiply<R, NV>(s, weight, heads, 1, in + column, stride, heads);
  VTK_UNROLL for (int i = 0; i < R; ++i) VTK_UNROLL for (int v = 0; v < NV; ++v) put(Int<LAST>{}, i, column + v * W, s[i][v]);
}
template <int R, class Put>
VTK_INLINE void mix(const Shape& shape, const float* weight, const float* in, int64_t stride, const Put& put) {
  constexpr int kFit = kTileRows * kTileVectors / R, NV = kFit > 6 ? 6 : kFit < 1 ? 1 : kFit;
  int v = 0;
  for (; v + NV <= shape.whole; v += NV) mix_tile<R, NV, false>(weight, shape.heads, in, stride, v * W, put);
  if constexpr (NV > 2)
    for (; v + 2 <= shape.whole; v += 2) mix_tile<R, 2, false>(weight, shape.heads, in, stride, v * W, put);
  for (; v < shape.whole; ++v) mix_tile<R, 1, false>(weight, shape.heads, in, stride, v * W, put);
  if (v < shape.vectors) mix_tile<R, 1, true>(weight, shape.heads, in, stride, v * W, put);
}

// acc[f * heads + g] += a_f * b_g, lane by lane
template <int F, int G>
VTK_INLINE void outer_tiles(const Shape& shape, const float* a, int64_t stride_a, const float* b, int64_t stride_b, V* acc) {
  for (int f = 0; f < shape.heads; f += F)
    for (int g = 0; g < shape.heads; g += G) {
      V s[F][G];
      VTK_UNROLL for (int i = 0; i < F; ++i) VTK_UNROLL for (int j = 0; j < G; ++j) s[i][j] = acc[(f + i) * shape.heads + g + j];
      const float *a_f = a + f * stride_a, *b_g = b + g * stride_b;
      for (int c = 0; c < shape.vectors * W; c += W) {
        V line[G];
        VTK_UNROLL for (int j = 0; j < G; ++j) line[j] = load(b_g + j * stride_b + c);
        VTK_UNROLL for (int i = 0; i < F; ++i) {
          const V value = load(a_f + i * stride_a + c);
          VTK_UNROLL for (int j = 0; j < G; ++j) s[i][j] = fma(value, line[j], s[i][j]);
        }
      }
      VTK_UNROLL for (int i = 0; i < F; ++i) VTK_UNROLL for (int j = 0; j < G; ++j) acc[(f + i) * shape.heads + g + j] = s[i][j];
    }
}
// tiles of divisors of R, with as many accumulators as there are registers for
template <int R>
VTK_INLINE void outer(const Shape& shape, const float* a, int64_t stride_a, const float* b, int64_t stride_b, V* acc) {
  constexpr int kF[] = {1, 2, 3, 4, 5, 6, 7, 4}, kWide[] = {1, 2, 3, 4, 5, 3, 1, 4}, kNarrow[] = {1, 2, 3, 2, 1, 1, 1, 2};
  outer_tiles<kF[R - 1], W == 16 ? kWide[R - 1] : kNarrow[R - 1]>(shape, a, stride_a, b, stride_b, acc);
}

// Working memory of the rows.
struct RowBuffers {
  float* e;        // [heads][ld] exponentials, then probabilities
  float* x;        // [heads][ld] gradients of these, then of the mixed scores
  float* keep;     // [heads][ld] dropout's factors
  float* inverse;  // [heads] 1 / sum of a row's exponentials; followed by room for a vector, as `folded` is
  float* delta;    // [heads] sum of P dP
  float* folded;   // [heads][heads] post weights times `inverse`
  V* sums;         // [heads]
};

// inverse sums of exponentials of every head; whether all are sane
VTK_INLINE bool inverse_sums(const Shape& shape, const RowBuffers& buffers) {
  bool sane = true;
  for (int g = 0; g < shape.heads; g += 8) {
    const Eight total = first_rows(shape.heads - g, sum_rows(buffers.sums + g), 1.0f);
    sane &= all_between(total, kSmallestSum, kLargestSum);
    store_eight(buffers.inverse + g, 1.0f / total);
  }
  return sane;
}

// The same with each row's maximum subtracted, for scores of any size.
template <int R>
VTK_NOINLINE void careful_exponentials(const Shape& shape, const float* weight, const float* scores, int64_t stride, const RowBuffers& buffers) {
  for (int f = 0; f < shape.heads; f += R)
    mix<R>(shape, weight + f * shape.heads, scores, stride,
           [&](auto, int i, int column, V t) __attribute__((always_inline)) { store(buffers.e + (f + i) * shape.ld + column, t); });
  for (int f = 0; f < shape.heads; ++f) {
    float* row = buffers.e + f * shape.ld;
    float top = row[0];
    for (int j = 1; j < shape.tokens; ++j) top = row[j] > top || row[j] != row[j] ? row[j] : top;
    V sum = zero();
    for (int v = 0; v < shape.vectors; ++v) {
      V value = exp(load(row + v * W) - set1(top));
      if (v >= shape.whole) {
        store(row + v * W, value);
        for (int j = shape.tokens; j < shape.vectors * W; ++j) row[j] = 0.0f;
        value = load(row + v * W);
      }
      store(row + v * W, value);
      sum += value;
    }
    buffers.sums[f] = sum;
  }
  inverse_sums(shape, buffers);
}

// e = exp(mixed scores), 0 in the padding, and inverse = 1 / their sums. Nothing is subtracted unless a sum shows that it had to be:
// exponentials neither overflow nor vanish for the scores of any sane network.
template <int R>
VTK_INLINE void exponentials(const Shape& shape, const float* weight, const float* scores, int64_t stride, const RowBuffers& buffers) {
  for (int f = 0; f < shape.heads; f += R) {
    V sums[R];
    VTK_UNROLL for (int i = 0; i < R; ++i) sums[i] = zero();
    float* e = buffers.e + f * shape.ld;
    mix<R>(shape, weight + f * shape.heads, scores, stride, [&](auto last, int i, int column, V t) __attribute__((always_inline)) {
      V value = exp(t);
      // the scores of padding are 0, so that their exponentials are finite
      if constexpr (decltype(last)::value) value *= load(shape.kept);
      store(e + i * shape.ld + column, value);
      sums[i] += value;
    });
    VTK_UNROLL for (int i = 0; i < R; ++i) buffers.sums[f + i] = sums[i];
  }
  // one token: its probability is to be 1 without rounding, or gradients that are zero would not be
  if (__builtin_expect(!inverse_sums(shape, buffers) || shape.tokens == 1, 0)) careful_exponentials<R>(shape, weight, scores, stride, buffers);
}

VTK_INLINE void dropout_factors(const Shape& shape, const TalkingHeads& call, int64_t image, int query, float* keep) {
  for (int f = 0; f < shape.heads; ++f) {
    const Dropout dropout(call.seed, call.dropout_p, (uint64_t)(image * shape.heads + f));
    for (int j = 0; j < shape.tokens; ++j) keep[f * shape.ld + j] = dropout.factor((uint32_t)query * (uint32_t)shape.tokens + (uint32_t)j);
  }
}
// rows of all heads times the factors; the padding is left alone
VTK_INLINE void apply_dropout(const Shape& shape, const float* keep, float* rows, int64_t stride) {
  for (int f = 0; f < shape.heads; ++f)
    for (int j = 0; j < shape.tokens; ++j) rows[f * stride + j] *= keep[f * shape.ld + j];
}

struct Rows {
  const TalkingHeads& call;
  const Shape& shape;
  const Mixing& mixing;
  const RowBuffers& buffers;
  int64_t image;
  int query, count;
};

// scores [heads][block_rows][ld] -> the weights of the values, in place
template <int R>
VTK_NOINLINE void forward_rows(const Rows& rows, float* scores) {
  const Shape& shape = rows.shape;
  const RowBuffers& buffers = rows.buffers;
  const int heads = shape.heads;
  const int64_t stride = shape.head_scores();
  for (int r = 0; r < rows.count; ++r) {
    float* s = scores + (int64_t)r * shape.ld;
    exponentials<R>(shape, rows.mixing.pre, s, stride, buffers);
    // normalising the weights instead of the probabilities; what a vector writes past its row, the next row overwrites
    for (int f = 0; f < heads; ++f)
      for (int g = 0; g < heads; g += W) store(buffers.folded + f * heads + g, load(rows.mixing.post + f * heads + g) * load(buffers.inverse + g));
    for (int f = 0; f < heads; f += R) {
      float* out = s + f * stride;
      const float* bias = rows.mixing.post_bias + f;
      mix<R>(shape, buffers.folded + f * heads, buffers.e, shape.ld,
             [&](auto, int i, int column, V t) __attribute__((always_inline)) { store(out + i * stride + column, t + set1(bias[i])); });
    }
    if (__builtin_expect(rows.call.dropout_p > 0.0, 0)) {
      dropout_factors(shape, rows.call, rows.image, rows.query + r, buffers.keep);
      apply_dropout(shape, buffers.keep, s, stride);
    }
  }
}

// Sums over rows and keys, one for each lane.
struct Gradients {
  V *pre, *post;  // [heads][heads]
  V* post_bias;   // [heads]
};

// scores -> their gradients, grads (of the weights of the values) -> these weights, in place
template <int R>
VTK_NOINLINE void backward_rows(const Rows& rows, float* scores, float* grads, const Gradients& sums) {
  const Shape& shape = rows.shape;
  const RowBuffers& buffers = rows.buffers;
  const int heads = shape.heads, columns = shape.vectors * W;
  const int64_t stride = shape.head_scores(), ld = shape.ld;
  const bool dropout = rows.call.dropout_p > 0.0;
  for (int r = 0; r < rows.count; ++r) {
    float *s = scores + r * ld, *d = grads + r * ld;
    exponentials<R>(shape, rows.mixing.pre, s, stride, buffers);
    if (__builtin_expect(dropout, 0)) {
      dropout_factors(shape, rows.call, rows.image, rows.query + r, buffers.keep);
      apply_dropout(shape, buffers.keep, d, stride);
    }
    // back through the second mixing; on the way probabilities are normalised and summed with their gradients
    for (int g = 0; g < heads; g += R) {
      V products[R], inverse[R];
      VTK_UNROLL for (int i = 0; i < R; ++i) {
        products[i] = zero();
        inverse[i] = set1(buffers.inverse[g + i]);
      }
      float *e = buffers.e + g * ld, *x = buffers.x + g * ld;
      mix<R>(shape, rows.mixing.post_back + g * heads, d, stride, [&](auto, int i, int column, V t) __attribute__((always_inline)) {
        const V p = load(e + i * ld + column) * inverse[i];
        store(e + i * ld + column, p);
        store(x + i * ld + column, t);
        products[i] = fma(p, t, products[i]);
      });
      VTK_UNROLL for (int i = 0; i < R; ++i) buffers.sums[g + i] = products[i];
    }
    for (int g = 0; g < heads; g += 8) store_eight(buffers.delta + g, sum_rows(buffers.sums + g));
    outer<R>(shape, d, stride, buffers.e, ld, sums.post);
    for (int f = 0; f < heads; ++f) {
      V sum = sums.post_bias[f];
      for (int c = 0; c < columns; c += W) sum += load(d + f * stride + c);
      sums.post_bias[f] = sum;
    }
    for (int f = 0; f < heads; f += R) {
      float* out = d + f * stride;
      const float* bias = rows.mixing.post_bias + f;
      mix<R>(shape, rows.mixing.post + f * heads, buffers.e, ld,
             [&](auto, int i, int column, V t) __attribute__((always_inline)) { store(out + i * stride + column, t + set1(bias[i])); });
    }
    if (__builtin_expect(dropout, 0)) apply_dropout(shape, buffers.keep, d, stride);
    // back through the softmax and the first mixing
    for (int g = 0; g < heads; ++g) {
      const V delta = set1(buffers.delta[g]);
      float *e = buffers.e + g * ld, *x = buffers.x + g * ld;
      for (int c = 0; c < columns; c += W) store(x + c, load(e + c) * (load(x + c) - delta));
    }
    outer<R>(shape, buffers.x, ld, s, stride, sums.pre);
    for (int g = 0; g < heads; g += R) {
      float* out = s + g * stride;
      mix<R>(shape, rows.mixing.pre_back + g * heads, buffers.x, ld,
             [&](auto, int i, int column, V t) __attribute__((always_inline)) { store(out + i * stride + column, t); });
    }
  }
}

}  // namespace vtk::VTK_ISA
