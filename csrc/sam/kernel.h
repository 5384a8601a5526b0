// The multi-tensor ops on raw pointers: what the torch binding hands to the kernels. No torch types here.
//
// Every tensor of an item is a flat array of `size` elements of `dtype`; the work is cut into chunks of items.
#pragma once
#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace vtk {

struct Chunk {
  int32_t item;
  int64_t begin, size;
};

struct Chunks {
  const Chunk* chunks;
  int64_t count;
  // the results go past the caches: there is more of them than a cache keeps until they are read again
  bool stream;
};

struct SamItem {
  DType dtype;
  void* param;  // only read for the norm
  const void* grad;
  void* backup;
  bool adaptive;
  float factor;  // rho / (norm + eps)
};

struct StepItem {
  DType dtype;
  void* param;
  const void *grad, *backup;  // backup: where the step starts from, which may be `param` itself
  void *first, *second;       // momentum buffer, or exp_avg and exp_avg_sq
  float size;                 // the learning rate; AdamW's carries the first bias correction
  float decay;                // the weights are multiplied by it: 1 - lr * weight_decay, or 1
  float weight_decay;         // added to the gradient: L2, or 0
  float root;                 // AdamW: 1 / sqrt(second bias correction)
};

struct SgdStep {
  const StepItem* items;
  float grad_factor;  // 1 / grad_scale, negative to maximise
  float momentum;
  bool nesterov;
};

struct AdamWStep {
  const StepItem* items;
  float grad_factor;
  // 1 - beta as rounded from double: from a rounded beta it would have lost half its digits
  float fresh1, beta2, fresh2, eps;
};

}  // namespace vtk

// The sums of the squares of the chunks, each into its place of `sums`.
VTK_DECLARE(void sam_square_sums(const SamItem* items, float eta, const Chunks& chunks, double* sums, const Parallel& parallel))
// backup = w; w += T^2 * grad * factor
VTK_DECLARE(void sam_perturb(const SamItem* items, float eta, const Chunks& chunks, const Parallel& parallel))
VTK_DECLARE(void sgd_step(const SgdStep& step, const Chunks& chunks, const Parallel& parallel))
VTK_DECLARE(void adamw_step(const AdamWStep& step, const Chunks& chunks, const Parallel& parallel))
