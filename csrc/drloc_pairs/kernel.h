// Pairs for dense relative localisation on raw pointers: what the torch binding hands to the kernels. No torch types here.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace vtk {

struct DrlocPairs {
  int64_t batch, height, width, channels, pairs;
  DType dtype;

  // forward
  const void* features;  // [batch, height, width, channels], dense in the last dimension
  int64_t feature_stride[3];
  const int64_t* given;  // [batch, pairs, 4] or null: drawn
  bool is_signed, normalize;
  uint64_t seed, offset;
  void* out;       // [batch, pairs, 2 * channels], contiguous
  float* targets;  // [batch, pairs, 2]

  // written by the forward, read by the backward
  int64_t* positions;  // [batch, pairs, 4]

  // backward
  const void* grad_out;  // [batch, pairs, 2 * channels], dense in the last dimension
  int64_t grad_stride[2];
  void* d_features;  // contiguous
};

}  // namespace vtk

VTK_DECLARE(void drloc_pairs_forward(const DrlocPairs& call, const Parallel& parallel))
VTK_DECLARE(void drloc_pairs_backward(const DrlocPairs& call, const Parallel& parallel))
