// The arithmetic one core can do from registers alone: what the share of peak in a benchmark is a share of.

#include <algorithm>
#include <chrono>
#include <vector>

#include "common/simd.h"

namespace vtk::VTK_ISA {
namespace {

// enough independent chains to hide the latency of two multiply-adds a cycle, few enough to stay in registers
constexpr int kChains = W == 16 ? 24 : 12;
constexpr int kSteps = 50'000;

// volatile: the compiler must not know the values, or it would compute the chains beforehand
volatile float factor = 0.999f, addend = 0.5f, sink;

template <class Step>
void run_chains(Step step) {
  V chain[kChains];
  VTK_UNROLL for (int i = 0; i < kChains; ++i) chain[i] = set1(0.001f * i);
  for (int n = 0; n < kSteps; ++n) {
    VTK_UNROLL for (int i = 0; i < kChains; ++i) chain[i] = step(chain[i]);
  }
  VTK_UNROLL for (int i = 1; i < kChains; ++i) chain[0] = chain[0] + chain[i];
  sink = sum(chain[0]);
}

// Operations per second. The median of many short runs: one that was interrupted, or ran before the other threads
// started or after they stopped, does not count.
template <class Step>
double rate(double seconds, double operations_per_step, Step step) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> runs;
  const auto begin = Clock::now();
  for (auto start = begin, now = begin; std::chrono::duration<double>(now - begin).count() < seconds; start = now) {
    run_chains(step);
    now = Clock::now();
    runs.push_back(std::chrono::duration<double>(now - start).count());
  }
  std::nth_element(runs.begin(), runs.begin() + runs.size() / 2, runs.end());
  return operations_per_step * kChains * kSteps / runs[runs.size() / 2];
}

}  // namespace

double fma_flops(double seconds) {
  const V x = set1(factor), y = set1(addend);
  return rate(seconds, 2.0 * W, [=](V chain) { return fma(chain, x, y); });
}

// 0 where the instruction set has no bf16 dot product
double bf16_dot_flops([[maybe_unused]] double seconds) {
#if defined(__AVX512BF16__)
  const __m512bh x = _mm512_cvtne2ps_pbh(set1(factor), set1(factor)), y = _mm512_cvtne2ps_pbh(set1(addend), set1(addend));
  return rate(seconds, 4.0 * W, [=](V chain) { return _mm512_dpbf16_ps(chain, x, y); });
#else
  return 0.0;
#endif
}

// y += x on whole vectors, with stores into the cache or past it: what memory does for two reads and a write
void add_to(float* y, const float* x, int64_t size, bool stream) {
  if (stream) {
    for (int64_t i = 0; i + W <= size; i += W) stream_row(y + i, load(y + i) + load(x + i));
    stream_fence();
  } else {
    for (int64_t i = 0; i + W <= size; i += W) store(y + i, load(y + i) + load(x + i));
  }
}

}  // namespace vtk::VTK_ISA
