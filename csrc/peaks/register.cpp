#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "common/isa.h"

VTK_DECLARE(double fma_flops(double seconds); double bf16_dot_flops(double seconds))

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

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(vtkernels_native, m) { m.def("measure_peak(str what, int threads) -> float"); }
STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CompositeExplicitAutograd, m) { m.impl("measure_peak", TORCH_BOX(&measure_peak)); }
