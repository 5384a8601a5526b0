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

inline const float* floats(const MaybeTensor& tensor) { return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr; }
inline float* mutable_floats(const MaybeTensor& tensor) { return tensor ? static_cast<float*>(tensor->mutable_data_ptr()) : nullptr; }

// torch's own threads, one task at a time
inline Parallel torch_parallel() {
  return {static_cast<int>(torch::stable::get_num_threads()), [](int64_t tasks, void (*body)(void*, int64_t), void* context) {
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) body(context, task);
    });
  }};
}

}  // namespace vtk
