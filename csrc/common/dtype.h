// The storage types of the native kernels.
#pragma once
#include <cstdint>

namespace vtk {

enum class DType { kFloat32, kBFloat16, kFloat16 };

struct BFloat16 {
  static constexpr bool kIsHalf = false;
  uint16_t bits;
};
struct Half {
  static constexpr bool kIsHalf = true;
  uint16_t bits;
};

}  // namespace vtk
