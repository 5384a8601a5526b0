// Class attention: keys and values are never formed. With x the tokens of an image and, for a head, W_k and W_v its rows:
//   direction u = scale * W_k^T q,   scores s_n = x_n . u,   p = softmax(s),   mixture z = sum_n p_n x_n,   out = W_v z + b_v
// Products with weights go head by head over all images, products with tokens image by image over all heads.
#pragma once
#include <memory>

#include "class_attention/kernel.h"
#include "class_attention/memory.h"
#include "class_attention/softmax.h"

namespace vtk::VTK_ISA {

// Memory of one call that threads share
using Floats = std::unique_ptr<float[]>;
VTK_INLINE Floats make_floats(int64_t count) { return Floats(new float[(size_t)(count + W)]); }

class ClassToken {
 public:
  ClassToken(const ClassAttention& call, const Parallel& parallel)
      : call(call), parallel(parallel), B(call.batch), T(call.tokens), C(call.channels), h(call.heads), dim(C / h), drops(call.dropout_p > 0.0) {
    // fewer heads than threads: several tasks share a head
    parts = (int)((parallel.threads + h - 1) / h);
    class_rows = make_floats(B * C);
    copy_rows(call.x, call.dtype, call.x_stride[0], B, C, class_rows.get(), 1.0f);
    if (drops) kept_sums = make_floats(B * h);
  }

  void forward() {
    for_each_head([&](int head, int part) { directions(head, part); });
    auto image = [&](int64_t b) { mixtures(b); };
    parallel.for_each(B, image);
    Floats wide;
    if (call.dtype != DType::kFloat32) wide = make_floats(B * C);
    float* out = wide ? wide.get() : (float*)call.out;
    for_each_head([&](int head, int part) { outputs(head, part, out); });
    if (wide) write_rows(wide.get(), B, C, call.out, call.dtype, C, false);
  }

  void backward() {
    grad = make_floats(B * C), d_mixtures = make_floats(B * h * C), d_directions = make_floats(B * h * C), d_queries = make_floats(B * C),
    d_class_rows = make_floats(B * C);
    copy_rows(call.grad_out, call.dtype, call.grad_stride, B, C, grad.get(), 1.0f);
    for_each_head([&](int head, int part) { value_gradients(head, part); });
    auto image = [&](int64_t b) { token_gradients(b); };
    parallel.for_each(B, image);
    for_each_head([&](int head, int part) { key_gradients(head, part); });
    for_each_head([&](int head, int part) { query_weight_gradient(head, part); });
    constexpr int kColumns = 6 * W;
    auto columns = [&](int64_t task) { class_row_gradients(task * kColumns, (int)least(kColumns, C - task * kColumns)); };
    parallel.for_each((C + kColumns - 1) / kColumns, columns);
    value_bias_gradient();
  }

 private:
  struct Range {
    int64_t begin, count;
  };
  Range share(int64_t all, int part) const { return {all * part / parts, all * (part + 1) / parts - all * part / parts}; }

  template <class F>
  void for_each_head(F f) const {
    auto run = [&](int64_t task) { f((int)(task / parts), (int)(task % parts)); };
    parallel.for_each((int64_t)h * parts, run);
  }

  // the rows of a weight that belong to a head, `count` of them from `first` on
  FloatRows head_rows(const Weight& weight, int head, float* scratch, int64_t first, int64_t count) const {
    return as_floats(at(weight.data, weight.dtype, ((int64_t)head * dim + first) * C), weight.dtype, C, count, C, scratch);
  }
  FloatRows head_rows(const Weight& weight, int head, float* scratch) const { return head_rows(weight, head, scratch, 0, dim); }
  Target head_target(const WeightGradient& to, int head, int64_t first) const {
    return {at(to.data, to.dtype, ((int64_t)head * dim + first) * C), to.dtype, C, false};
  }
  Mix over_images(const float* coefficients, int head, Range rows, const float* x, int64_t ldx, float scale) const {
    // row: a channel of the head; the sum runs over images
    return {{{coefficients + (int64_t)head * dim + rows.begin, 1, C, x, ldx, B}}, 1, scale, nullptr, C, false};
  }

  void directions(int head, int part) {
    const Range images = share(B, part);
    if (images.count == 0) return;
    with_scratch([&](Carver& carver) {
      float *weight = carver.take<float>(dim * C), *row = carver.take<float>(0);
      (void)row;
      if (!carver.memory) return;
      float* q = call.queries + images.begin * C + (int64_t)head * dim;
      const FloatRows q_rows = head_rows(call.q_weight, head, weight);
      dots({class_rows.get() + images.begin * C, C, q_rows.data, q_rows.ld, (int)C, 1.0f, q, C, false}, images.count, dim);
      if (call.q_bias)
        for (int64_t b = 0; b < images.count; ++b)
          for (int d = 0; d < dim; ++d) q[b * C + d] += call.q_bias[head * dim + d];
      const FloatRows k_rows = head_rows(call.k_weight, head, weight);
      mix({{{q, C, 1, k_rows.data, k_rows.ld, dim}}, 1, call.scale, call.directions + (images.begin * h + head) * C, h * C, false}, images.count, C);
    });
  }

  // 0 or 1 / (1 - p) for each weight of an image, [tokens][heads]
  void draw(int64_t b, float* keep) const {
    for (int head = 0; head < h; ++head) {
      const Dropout dropout(call.seed, call.dropout_p, (uint64_t)(b * h + head));
      for (int64_t n = 0; n < T; ++n) keep[n * h + head] = dropout.factor((uint32_t)n);
    }
  }
  // keep becomes p * keep; the sums over tokens are kept for the value bias
  void drop(int64_t b, const float* p, float* keep) const {
    float* sums = kept_sums.get() + b * h;
    for (int head = 0; head < h; ++head) sums[head] = 0.0f;
    for (int64_t n = 0; n < T; ++n)
      for (int head = 0; head < h; ++head) {
        keep[n * h + head] *= p[n * h + head];
        sums[head] += keep[n * h + head];
      }
  }

  const void* image(int64_t b) const { return at(call.x, call.dtype, b * call.x_stride[0]); }
  int64_t image_copy() const { return call.dtype == DType::kFloat32 ? 0 : T * C; }

  void mixtures(int64_t b) {
    with_scratch([&](Carver& carver) {
      const Softmax softmax(carver, T, h);
      float *p = carver.take<float>(softmax.padded), *kept = carver.take<float>(drops ? softmax.padded : 0), *copy = carver.take<float>(image_copy());
      if (!carver.memory) return;
      const FloatRows x = as_floats(image(b), call.dtype, call.x_stride[1], T, C, copy);
      dots({x.data, x.ld, call.directions + b * h * C, C, (int)C, 1.0f, p, h, x.data != copy}, T, h);
      softmax.forward(p);
      memcpy(call.probabilities + b * T * h, p, T * h * sizeof(float));
      if (drops) {
        draw(b, kept);
        drop(b, p, kept);
      }
      mix({{{drops ? kept : p, 1, h, x.data, x.ld, T}}, 1, 1.0f, call.mixtures + b * h * C, C, false}, h, C);
    });
  }

  void outputs(int head, int part, float* out) const {
    const Range images = share(B, part);
    if (images.count == 0) return;
    with_scratch([&](Carver& carver) {
      float* weight = carver.take<float>(dim * C);
      if (!carver.memory) return;
      const FloatRows v_rows = head_rows(call.v_weight, head, weight);
      float* to = out + images.begin * C + (int64_t)head * dim;
      dots({call.mixtures + (images.begin * h + head) * C, h * C, v_rows.data, v_rows.ld, (int)C, 1.0f, to, C, false}, images.count, dim);
      if (call.v_bias)
        for (int64_t b = 0; b < images.count; ++b) {
          // probabilities sum to one, but for dropout
          const float weight_sum = drops ? kept_sums[(images.begin + b) * h + head] : 1.0f;
          for (int d = 0; d < dim; ++d) to[b * C + d] += weight_sum * call.v_bias[head * dim + d];
        }
    });
  }

  // the mixtures' gradients, and that of the value weight
  void value_gradients(int head, int part) const {
    const Range images = share(B, part), rows = share(dim, part);
    with_scratch([&](Carver& carver) {
      float *weight = carver.take<float>(dim * C), *scratch = carver.take<float>(kMost * C);
      if (!carver.memory) return;
      const FloatRows v_rows = head_rows(call.v_weight, head, weight);
      const float* d_out = grad.get() + images.begin * C + (int64_t)head * dim;
      mix({{{d_out, C, 1, v_rows.data, v_rows.ld, dim}}, 1, 1.0f, d_mixtures.get() + (images.begin * h + head) * C, h * C, false}, images.count, C);
      mix_into(over_images(grad.get(), head, rows, call.mixtures + head * C, h * C, 1.0f), rows.count, C, head_target(call.d_v_weight, head, rows.begin),
               scratch);
    });
  }

  void token_gradients(int64_t b) const {
    const bool stream = stream_results(call.d_x, call.dtype, B * T, C);
    with_scratch([&](Carver& carver) {
      const Softmax softmax(carver, T, h);
      float *p = carver.take<float>(softmax.padded), *d_s = carver.take<float>(softmax.padded), *kept = carver.take<float>(drops ? softmax.padded : 0),
            *copy = carver.take<float>(image_copy()), *scratch = carver.take<float>(kMost * C);
      if (!carver.memory) return;
      const float *u = call.directions + b * h * C, *d_z = d_mixtures.get() + b * h * C;
      memcpy(p, call.probabilities + b * T * h, T * h * sizeof(float));
      softmax.fill(p, 0.0f);
      const FloatRows x = as_floats(image(b), call.dtype, call.x_stride[1], T, C, copy);
      dots({x.data, x.ld, d_z, C, (int)C, 1.0f, d_s, h, x.data != copy}, T, h);
      if (drops) {
        draw(b, kept);
        dropped_gradients(b, kept, d_s);
        drop(b, p, kept);
      }
      softmax.backward(p, d_s);
      mix({{{d_s, 1, h, x.data, x.ld, T}}, 1, 1.0f, d_directions.get() + b * h * C, C, false}, h, C);
      Mix d_x{{{drops ? kept : p, h, 1, d_z, C, h}, {d_s, h, 1, u, C, h}}, 2, 1.0f, d_class_rows.get() + b * C, C, false};
      // the class token has the query's gradient to come
      mix(d_x, 1, C);
      for (Term& term : d_x.terms) term.a += h;
      mix_into(d_x, T - 1, C, {at(call.d_x, call.dtype, (b * T + 1) * C), call.dtype, C, stream}, scratch);
      if (stream) stream_fence();
    });
  }

  // with dropout the value bias does not cancel: d_p = keep * (x . d_z + b_v . d_out)
  void dropped_gradients(int64_t b, const float* keep, float* d_p) const {
    for (int head = 0; head < h; ++head) {
      float constant = 0.0f;
      if (call.v_bias)
        for (int d = 0; d < dim; ++d) constant += call.v_bias[head * dim + d] * grad[b * C + head * dim + d];
      for (int64_t n = 0; n < T; ++n) d_p[n * h + head] = keep[n * h + head] * (d_p[n * h + head] + constant);
    }
  }

  // the queries' gradients, and that of the key weight
  void key_gradients(int head, int part) {
    const Range images = share(B, part), rows = share(dim, part);
    with_scratch([&](Carver& carver) {
      float *weight = carver.take<float>(dim * C), *scratch = carver.take<float>(kMost * C);
      if (!carver.memory) return;
      const FloatRows k_rows = head_rows(call.k_weight, head, weight);
      dots({d_directions.get() + (images.begin * h + head) * C, h * C, k_rows.data, k_rows.ld, (int)C, call.scale,
            d_queries.get() + images.begin * C + (int64_t)head * dim, C, false},
           images.count, dim);
      mix_into(over_images(call.queries, head, rows, d_directions.get() + head * C, h * C, call.scale), rows.count, C,
               head_target(call.d_k_weight, head, rows.begin), scratch);
    });
  }

  void query_weight_gradient(int head, int part) const {
    const Range rows = share(dim, part);
    with_scratch([&](Carver& carver) {
      float* scratch = carver.take<float>(kMost * C);
      if (!carver.memory) return;
      mix_into(over_images(d_queries.get(), head, rows, class_rows.get(), C, 1.0f), rows.count, C, head_target(call.d_q_weight, head, rows.begin), scratch);
    });
    if (part == 0)
      for (int c = head * dim; c < (head + 1) * dim; ++c) {
        float sum = 0.0f;
        for (int64_t b = 0; b < B; ++b) sum += d_queries[b * C + c];
        call.d_q_bias[c] = sum;
      }
  }

  // some columns of every class token's gradient
  void class_row_gradients(int64_t first, int columns) const {
    with_scratch([&](Carver& carver) {
      float *weight = carver.take<float>(call.q_weight.dtype == DType::kFloat32 ? 0 : C * columns), *sums = carver.take<float>(B * columns);
      if (!carver.memory) return;
      const FloatRows q_columns = as_floats(at(call.q_weight.data, call.q_weight.dtype, first), call.q_weight.dtype, C, C, columns, weight);
      mix({{{d_queries.get(), C, 1, q_columns.data, q_columns.ld, C}}, 1, 1.0f, sums, columns, false}, B, columns);
      for (int64_t b = 0; b < B; ++b)
        for (int c = 0; c < columns; ++c) sums[b * columns + c] += d_class_rows[b * C + first + c];
      write_rows(sums, B, columns, at(call.d_x, call.dtype, first), call.dtype, T * C, false);
    });
  }

  void value_bias_gradient() const {
    for (int64_t c = 0; c < C; ++c) {
      float sum = 0.0f;
      for (int64_t b = 0; b < B; ++b) sum += grad[b * C + c] * (drops ? kept_sums[b * h + c / dim] : 1.0f);
      call.d_v_bias[c] = sum;
    }
  }

  const ClassAttention& call;
  const Parallel& parallel;
  const int64_t B, T, C;
  const int h, dim;
  const bool drops;
  int parts;
  Floats class_rows, kept_sums;                                    // [B, C], [B, h]
  Floats grad, d_mixtures, d_directions, d_queries, d_class_rows;  // [B, C] or [B, h, C]
};

}  // namespace vtk::VTK_ISA
