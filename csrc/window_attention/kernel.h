// Window attention on raw pointers: what the torch binding hands to the kernels. No torch types here.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace vtk {

struct WindowAttention {
  int64_t batch, height, width;
  int heads, head_dim, window_h, window_w, shift_h, shift_w;
  float scale;
  bool mask_padding, shift_first;
  double dropout_p;
  uint64_t seed;

  DType dtype;               // of qkv, out, grad_out and d_qkv
  const void* qkv;           // [batch, height, width, 3 * heads * head_dim], dense in the last dimension
  int64_t qkv_stride[3];     // in elements
  const float* bias_table;   // [(2 * window_h - 1) * (2 * window_w - 1), heads] or null
  const float* bias;         // [heads, tokens, tokens] or null
  const float* logit_scale;  // [heads] or null: cosine attention
  const float* qkv_bias;     // [3 * heads * head_dim] or null

  // forward
  void* out;          // [batch, height, width, heads * head_dim], contiguous
  float* statistics;  // [2, batch, windows, heads, tokens] or null

  // backward
  const void* grad_out;  // like out, dense in the last dimension
  int64_t grad_stride[3];
  void* d_qkv;                                                // contiguous
  float *d_bias_table, *d_bias, *d_logit_scale, *d_qkv_bias;  // null where the parameter is
};

}  // namespace vtk

VTK_DECLARE(void window_attention_forward(const WindowAttention& call, const Parallel& parallel))
VTK_DECLARE(void window_attention_backward(const WindowAttention& call, const Parallel& parallel))
