// Talking-heads attention on raw pointers: what the torch binding hands to the kernels. No torch types here.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace vtk {

struct TalkingHeads {
  int64_t batch;
  int tokens, heads, head_dim;
  float scale;
  double dropout_p;
  uint64_t seed;

  DType dtype;              // of qkv, out, grad_out and d_qkv
  const void* qkv;          // [batch, tokens, 3 * heads * head_dim], dense in the last dimension
  int64_t qkv_stride[2];    // in elements
  const float* pre_weight;  // [heads, heads]; the bias before the softmax changes nothing and is not here
  const float* post_weight;
  const float* post_bias;  // [heads] or null

  // forward
  void* out;  // [batch, tokens, heads * head_dim], contiguous

  // backward
  const void* grad_out;  // like out, dense in the last dimension
  int64_t grad_stride[2];
  void* d_qkv;  // contiguous
  float *d_pre_weight, *d_post_weight, *d_post_bias;
};

}  // namespace vtk

VTK_DECLARE(void talking_heads_attention_forward(const TalkingHeads& call, const Parallel& parallel))
VTK_DECLARE(void talking_heads_attention_backward(const TalkingHeads& call, const Parallel& parallel))
