// Counter-based random numbers, and the dropout made of them: the same on every backend, in any order.
#pragma once
#include "common/simd.h"

namespace vtk::VTK_ISA {

// Philox4x32-10: the first word for counter (element, item) under the 64-bit key `seed`.
VTK_INLINE uint32_t philox(uint64_t seed, uint32_t element, uint64_t item) {
  uint32_t c0 = element, c1 = (uint32_t)item, c2 = (uint32_t)(item >> 32), c3 = 0, k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0;
}

struct Dropout {
  uint64_t seed, item;  // item: the attention matrix, among all of the call
  uint32_t threshold;   // a word below it keeps its element
  float kept;           // 1 / (1 - p)
  bool on;

  Dropout(uint64_t seed, double p, uint64_t item) : seed(seed), item(item), kept((float)(1.0 / (1.0 - p))), on(p > 0.0) {
    const double exact = (1.0 - p) * 4294967296.0 + 0.5;
    threshold = exact >= 4294967295.0 ? 4294967295u : (uint32_t)exact;
  }
  inline __attribute__((always_inline)) float factor(uint32_t element) const { return philox(seed, element, item) < threshold ? kept : 0.0f; }
};

}  // namespace vtk::VTK_ISA
