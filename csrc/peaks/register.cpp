#include <algorithm>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "common/abi.h"
#include "common/isa.h"

VTK_DECLARE(double fma_flops(double seconds); double bf16_dot_flops(double seconds); void add_to(float* y, const float* x, int64_t size, bool stream))

namespace {

double fma_flops(double seconds) { VTK_DISPATCH(fma_flops, seconds) }
double bf16_dot_flops(double seconds) { VTK_DISPATCH(bf16_dot_flops, seconds) }

// Operations per second of `threads` threads at once: "fp32" multiply-adds or "bf16" dot products, in the chosen instruction set.
double measure_peak(std::string what, int64_t threads) {
  STD_TORCH_CHECK(what == "fp32" || what == "bf16", "measure_peak: what must be fp32 or bf16, got ", what);
  STD_TORCH_CHECK(threads >= 1, "measure_peak: threads must be at least 1, got ", threads);
  const auto measure = what == "fp32" ? fma_flops : bf16_dot_flops;
  std::vector<double> rates(threads);
  std::vector<std::thread> pool;
  for (double& rate : rates) pool.emplace_back([&rate, measure] { rate = measure(0.2); });
  for (std::thread& thread : pool) thread.join();
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

void add_to_on_chosen_isa(float* y, const float* x, int64_t size, bool stream) { VTK_DISPATCH(add_to, y, x, size, stream) }

// y += x, for a benchmark to time: the memory's bandwidth as kernels of two reads and one write find it.
void add_to(vtk::Tensor y, vtk::Tensor x, bool stream) {
  STD_TORCH_CHECK(y.numel() == x.numel(), "add_to: y and x must have one size, got ", y.numel(), " and ", x.numel());
  constexpr int64_t kBlock = 16 << 10;
  float* to = static_cast<float*>(y.mutable_data_ptr());
  const float* from = static_cast<const float*>(x.const_data_ptr());
  const int64_t size = y.numel();
  auto run = [=](int64_t task) { add_to_on_chosen_isa(to + task * kBlock, from + task * kBlock, std::min(kBlock, size - task * kBlock), stream); };
  vtk::torch_parallel().for_each((size + kBlock - 1) / kBlock, run);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vtkernels_native, m) {
  m.def("measure_peak(str what, int threads) -> float");
  m.def("add_to(Tensor(a!) y, Tensor x, bool stream) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CompositeExplicitAutograd, m) { m.impl("measure_peak", TORCH_BOX(&measure_peak)); }
STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CPU, m) { m.impl("add_to", TORCH_BOX(&add_to)); }
