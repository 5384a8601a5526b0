// Where the native code meets torch: its stable ABI, so that one binary serves every torch from 2.10 on. (launch.cuh adds what CUDA needs of it.)
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "common/dtype.h"
#include "common/parallel.h"

namespace vtk {

using Tensor = torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: STD_TORCH_CHECK(false, "the native kernels compute in float32, bfloat16 and float16");
  }
  return DType::kFloat32;
}

// A buffer of another dtype would be read, or written, past its end.
inline const Tensor& in_float32(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.scalar_type() == torch::headeronly::ScalarType::Float, "the native kernels take this tensor in float32 only");
  return tensor;
}

inline const float* floats(const Tensor& tensor) { return static_cast<const float*>(in_float32(tensor).const_data_ptr()); }
inline float* mutable_floats(const Tensor& tensor) { return static_cast<float*>(in_float32(tensor).mutable_data_ptr()); }
inline const float* floats(const MaybeTensor& tensor) { return tensor ? floats(*tensor) : nullptr; }
inline float* mutable_floats(const MaybeTensor& tensor) { return tensor ? mutable_floats(*tensor) : nullptr; }

// torch's own threads, one task at a time
inline Parallel torch_parallel() {
  return {static_cast<int>(torch::stable::get_num_threads()), [](int64_t tasks, void (*body)(void*, int64_t), void* context) {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) body(context, task);
    });
  }};
}

}  // namespace vtk
