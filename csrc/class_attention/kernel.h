// Class and pooled attention on raw pointers: what the torch binding hands to the kernels. No torch types here.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace vtk {

struct Weight {  // [channels, channels], contiguous
  const void* data;
  DType dtype;
};
struct WeightGradient {
  void* data;
  DType dtype;
};

struct ClassAttention {
  int64_t batch, tokens;
  int channels, heads;
  float scale;
  double dropout_p;
  uint64_t seed;

  DType dtype;          // of x, out, grad_out and d_x
  const void* x;        // [batch, tokens, channels], dense in the last dimension
  int64_t x_stride[2];  // in elements
  Weight q_weight, k_weight, v_weight;
  const float *q_bias, *v_bias;  // [channels] or null

  // written by the forward, read by the backward; contiguous
  float* probabilities;          // [batch, tokens, heads]
  float* queries;                // [batch, channels]
  float *directions, *mixtures;  // [batch, heads, channels]

  // forward
  void* out;  // [batch, channels]

  // backward
  const void* grad_out;  // [batch, channels], dense in the last dimension
  int64_t grad_stride;
  void* d_x;  // [batch, tokens, channels], contiguous
  WeightGradient d_q_weight, d_k_weight, d_v_weight;
  float *d_q_bias, *d_v_bias;  // [channels]
};

struct PooledAttention {
  int64_t batch, queries, keys;
  int heads, dim;
  float scale;
  double dropout_p;
  uint64_t seed;

  DType dtype;
  const void *q, *k, *v, *grad_out;  // [batch, heads, rows, dim], dense in the last dimension
  int64_t q_stride[3], k_stride[3], v_stride[3], grad_stride[3];

  // forward
  void* out;          // contiguous
  float* statistics;  // [2, batch, heads, queries]: the largest score, and 1 / the sum of the exponentials

  // backward
  void *d_q, *d_k, *d_v;  // contiguous
};

}  // namespace vtk

VTK_DECLARE(void class_attention_forward(const ClassAttention& call, const Parallel& parallel))
VTK_DECLARE(void class_attention_backward(const ClassAttention& call, const Parallel& parallel))
VTK_DECLARE(void pooled_attention_forward(const PooledAttention& call, const Parallel& parallel))
VTK_DECLARE(void pooled_attention_backward(const PooledAttention& call, const Parallel& parallel))
