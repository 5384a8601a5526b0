// Jensen-Shannon consistency, alone or beside a cross-entropy, on raw pointers: what the torch binding hands to the kernels.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace vtk {

struct Jsd {
  int64_t batch, classes;
  int views;
  const float* view_weights;  // with sum 1
  float weight;               // of the consistency
  float label_smoothing;

  DType dtype;         // of logits and gradient
  const void* logits;  // [views * batch, classes], dense in the last dimension
  int64_t row_stride;
  const int64_t* classes_wanted;  // [batch], in range, or null
  const float* soft_target;       // [batch, classes], contiguous, or null; at most one of the two

  float* losses;   // [batch], or null
  void* gradient;  // contiguous, or null
  // each sample's gradient is multiplied by `share`, and by grad_loss where there is one
  float share;
  const float* grad_loss;
  int64_t grad_stride;
};

}  // namespace vtk

VTK_DECLARE(void jsd(const Jsd& call, const Parallel& parallel))
