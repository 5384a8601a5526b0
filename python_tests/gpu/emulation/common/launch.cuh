// In the place of csrc/common/launch.cuh: CUDA kernels as ordinary functions, run on a CPU. For tests of what they compute.
//
// Blocks run one after another. The threads of a block are fibers that run until they meet: at __syncthreads() and in shuffles, where
// every thread of the block must come along, as in the kernels at hand. So each meeting is a barrier. Races are not seen. What warps do on
// tensor cores is in mma.cuh beside this.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "common/abi.h"

#define __global__ inline
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

namespace emulation {

struct Index {
  unsigned x;
};
inline Index thread, block, block_size;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[64 << 10]};
  bool done;
};
inline std::vector<Fiber> fibers(1024);
inline std::vector<double> exchanged(1024);
inline ucontext_t scheduler;
inline std::function<void()> body;
inline int64_t launches = 0;
inline std::vector<double> shared;

inline void meet() {
  const Index self = thread;
  swapcontext(&fibers[self.x].context, &scheduler);
  thread = self;
}

inline void run_thread() {
  const unsigned self = thread.x;
  body();
  fibers[self].done = true;
}

inline void run_block(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, 64 << 10};
    fiber.context.uc_link = &scheduler;
    fiber.done = false;
    makecontext(&fiber.context, run_thread, 0);
  }
  for (bool left = true; left;) {
    left = false;
    for (thread.x = 0; thread.x < threads; ++thread.x) {
      const Index next = thread;
      if (!fibers[next.x].done) {
        swapcontext(&scheduler, &fibers[next.x].context);
        left = left || !fibers[next.x].done;
      }
      thread = next;
    }
  }
}

inline double exchange(double value, int lane_mask) {
  exchanged[thread.x] = value;
  meet();
  const double other = exchanged[thread.x ^ lane_mask];
  meet();
  return other;
}

}  // namespace emulation

#define threadIdx emulation::thread
#define blockIdx emulation::block
#define blockDim emulation::block_size
#define __syncthreads() emulation::meet()
#define __syncwarp() emulation::meet()
#define __shfl_xor_sync(mask, value, lane_mask) emulation::exchange(value, lane_mask)

namespace vtk {

inline void* dynamic_shared() { return emulation::shared.data(); }

struct Launch {
  explicit Launch(const Tensor&) {}

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int threads, const Arguments&... arguments) const {
    if (blocks == 0) return;
    ++emulation::launches;
    emulation::block_size.x = threads;
    emulation::body = [&] { kernel(arguments...); };
    for (int64_t i = 0; i < blocks; ++i) {
      emulation::block.x = static_cast<unsigned>(i);
      emulation::run_block(threads);
    }
  }

  template <class... Parameters, class... Arguments>
  void with_shared(size_t bytes, void (*kernel)(Parameters...), int64_t blocks, int threads, const Arguments&... arguments) const {
    // what a kernel forgets to write is NaN
    emulation::shared.assign((bytes + 7) / 8, NAN);
    (*this)(kernel, blocks, threads, arguments...);
  }
};

}  // namespace vtk

extern "C" __attribute__((visibility("default"))) int64_t emulated_launches() { return emulation::launches; }

// registered beside the real ones, for the tensors there are
#define vtkernels_native vtkernels_emulated
#define CUDA CPU
