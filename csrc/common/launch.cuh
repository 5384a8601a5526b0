// Where CUDA kernels are launched: on the device of the tensors and on torch's current stream.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/abi.h"
#include "common/cuda_stream.h"

namespace vtk {

__device__ inline void* dynamic_shared() {
  extern __shared__ uint4 memory[];
  return memory;
}

class Launch {
 public:
  explicit Launch(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    const CurrentStream current_stream = current_cuda_stream();
    STD_TORCH_CHECK(current_stream != nullptr, "this torch was built without CUDA");
    void* stream = nullptr;
    STD_TORCH_CHECK(current_stream(tensor.get_device_index(), &stream) == 0, "torch has no current CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  // kernel<<<blocks, threads>>>(arguments...); nothing for no blocks
  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int threads, const Arguments&... arguments) const {
    start(kernel, blocks, threads, 0, arguments...);
  }

  // the same for a kernel that asks `dynamic_shared` for so many bytes
  template <class... Parameters, class... Arguments>
  void with_shared(size_t bytes, void (*kernel)(Parameters...), int64_t blocks, int threads, const Arguments&... arguments) const {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    start(kernel, blocks, threads, bytes, arguments...);
  }

 private:
  template <class... Parameters, class... Arguments>
  void start(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t bytes, const Arguments&... arguments) const {
    if (blocks == 0) return;
    kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream_>>>(arguments...);
    check(cudaGetLastError());
  }

  static void check(cudaError_t error) { STD_TORCH_CHECK(error == cudaSuccess, "a CUDA kernel could not be launched: ", cudaGetErrorString(error)); }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace vtk
