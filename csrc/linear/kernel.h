// Linear layers and the two-layer perceptron on raw pointers: what the torch binding hands to the kernels. All in float32.
#pragma once
#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"

namespace vtk {

enum class Activation { kNone, kRelu, kGelu, kGeluTanh, kQuickGelu, kSilu };

struct Rows {  // dense in the last dimension
  const float* data;
  int64_t stride;
};

struct Layer {
  int64_t inputs, outputs;
  const float* weight;  // [outputs, inputs], contiguous
  const float* bias;    // [outputs] or null
};

struct LayerGradient {
  float* weight;  // [outputs, inputs], contiguous; null: not wanted, nor the bias
  float* bias;    // [outputs] or null
};

struct Linear {
  int64_t rows;
  Rows x;
  Layer layer;

  // forward
  Activation activation;
  float* before;  // [rows, outputs], what the activation is applied to; null: not wanted
  float* out;     // [rows, outputs]

  // backward
  Rows grad;   // of what the activation is applied to
  float* d_x;  // null: not wanted
  LayerGradient gradient;
};

struct Mlp {
  int64_t rows;
  Rows x;
  Layer first, second;
  Activation activation;

  // written by the forward, read by the backward; null in a forward without a backward
  float* hidden;  // [rows, first.outputs], before the activation

  // forward
  float* out;

  // backward
  Rows grad;
  float* d_hidden;  // [rows, first.outputs]; null: nothing before the second layer is wanted
  float* d_x;       // null: not wanted
  LayerGradient first_gradient, second_gradient;
};

struct Slope {  // out = grad * activation'(before)
  int64_t rows, columns;
  Activation activation;
  Rows grad;
  const float* before;  // [rows, columns]
  float* out;           // [rows, columns]
};

}  // namespace vtk

VTK_DECLARE(void linear_forward(const Linear& call, const Parallel& parallel))
VTK_DECLARE(void linear_backward(const Linear& call, const Parallel& parallel))
VTK_DECLARE(void mlp_forward(const Mlp& call, const Parallel& parallel))
VTK_DECLARE(void mlp_backward(const Mlp& call, const Parallel& parallel))
VTK_DECLARE(void activation_backward(const Slope& call, const Parallel& parallel))
