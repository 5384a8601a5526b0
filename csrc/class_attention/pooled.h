// Pooled attention: for each image and head a few queries over many keys and values.
#pragma once
#include "class_attention/kernel.h"
#include "class_attention/memory.h"
#include "class_attention/softmax.h"

namespace vtk::VTK_ISA {

class Pooled {
 public:
  Pooled(const PooledAttention& call, int64_t item, Carver& carver)
      : call(call), item(item), M(call.queries), N(call.keys), D(call.dim), drops(call.dropout_p > 0.0), softmax(carver, N, (int)M) {
    q = carver.take<float>(M * D);
    p = carver.take<float>(softmax.padded);
    kept = carver.take<float>(drops ? softmax.padded : 0);
    keys = carver.take<float>(copy());
    values = carver.take<float>(copy());
    scratch = carver.take<float>(kMost * D);
  }

  void forward() {
    read();
    probabilities();
    memcpy(call.statistics + item * M, softmax.largest(), M * sizeof(float));
    memcpy(call.statistics + (call.batch * call.heads + item) * M, softmax.inverse(), M * sizeof(float));
    mix_into({{{drop(), 1, M, v.data, v.ld, N}}, 1, 1.0f, nullptr, D, false}, M, D, target(call.out, M), scratch);
  }

  void backward(float* grad, float* d_s) {
    read();
    probabilities();
    copy_rows(locate(call.grad_out, call.grad_stride), call.dtype, call.grad_stride[2], M, D, grad, 1.0f);
    dots({v.data, v.ld, grad, D, D, 1.0f, d_s, M, false}, N, (int)M);
    const float* weights = drop();
    if (drops)
      // what is dropped, or scaled up, on the way forward is so on the way back
      for (int64_t i = 0; i < N * M; ++i) d_s[i] *= keep((int)(i % M), i / M);
    softmax.backward(p, d_s);
    mix_into({{{weights, M, 1, grad, D, M}}, 1, 1.0f, nullptr, D, false}, N, D, target(call.d_v, N), scratch);
    mix_into({{{d_s, M, 1, q, D, M}}, 1, 1.0f, nullptr, D, false}, N, D, target(call.d_k, N), scratch);
    mix_into({{{d_s, 1, M, k.data, k.ld, N}}, 1, call.scale, nullptr, D, false}, M, D, target(call.d_q, M), scratch);
    stream_fence();
  }

  int64_t padded() const { return softmax.padded; }

 private:
  int64_t copy() const { return call.dtype == DType::kFloat32 ? 0 : N * D; }
  const void* locate(const void* data, const int64_t (&stride)[3]) const {
    return at(data, call.dtype, item / call.heads * stride[0] + item % call.heads * stride[1]);
  }
  Target target(void* data, int64_t rows) const {
    return {at(data, call.dtype, item * rows * D), call.dtype, D, stream_results(data, call.dtype, call.batch * call.heads * rows, D)};
  }

  void read() {
    copy_rows(locate(call.q, call.q_stride), call.dtype, call.q_stride[2], M, D, q, call.scale);
    k = as_floats(locate(call.k, call.k_stride), call.dtype, call.k_stride[2], N, D, keys);
    v = as_floats(locate(call.v, call.v_stride), call.dtype, call.v_stride[2], N, D, values);
  }
  void probabilities() {
    dots({k.data, k.ld, q, D, D, 1.0f, p, M, false}, N, (int)M);
    softmax.forward(p);
  }
  float keep(int query, int64_t key) const { return Dropout(call.seed, call.dropout_p, (uint64_t)item).factor((uint32_t)(query * N + key)); }
  // the weights of the values
  const float* drop() {
    if (!drops) return p;
    for (int64_t i = 0; i < N * M; ++i) kept[i] = p[i] * keep((int)(i % M), i / M);
    return kept;
  }

  const PooledAttention& call;
  const int64_t item;  // image and head
  const int64_t M, N;
  const int D;
  const bool drops;
  const Softmax softmax;
  float *q, *p, *kept, *keys, *values, *scratch;
  FloatRows k, v;
};

}  // namespace vtk::VTK_ISA
