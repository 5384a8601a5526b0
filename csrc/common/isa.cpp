#include "common/isa.h"

#include <cstdlib>
#include <cstring>

namespace vtk {
namespace {

bool usable(Isa isa) {
#if defined(__x86_64__)
  const bool avx512 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (isa) {
#if defined(VTK_HAS_AVX512_BF16)
    case Isa::kAvx512Bf16: return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
#if defined(VTK_HAS_AVX512)
    case Isa::kAvx512: return avx512;
#endif
#if defined(VTK_HAS_AVX2)
    case Isa::kAvx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
    default: break;
  }
#endif
  return isa == Isa::kPortable;
}

Isa choose() {
  int best = 3;
  if (const char* limit = std::getenv("VTKERNELS_ISA")) {
    for (int i = 0; i < 4; ++i)
      if (std::strcmp(limit, kIsaNames[i]) == 0) best = i;
  }
  while (!usable(static_cast<Isa>(best))) --best;
  return static_cast<Isa>(best);
}

}  // namespace

Isa chosen_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace vtk
