// The instruction sets the kernels are compiled for, and the one this process uses.
#pragma once
#include <cstdint>

namespace vtk {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

// The best set that was compiled, that this CPU has, and that the environment variable VTKERNELS_ISA allows.
Isa chosen_isa();

}  // namespace vtk

// One kernel of several namespaces: VTK_DISPATCH(f, args) calls vtk::<chosen isa>::f(args).
#if defined(VTK_HAS_AVX512_BF16)
#define VTK_CASE_AVX512_BF16(f, ...) \
  case ::vtk::Isa::kAvx512Bf16: return ::vtk::avx512_bf16::f(__VA_ARGS__);
#else
#define VTK_CASE_AVX512_BF16(f, ...)
#endif
#if defined(VTK_HAS_AVX512)
#define VTK_CASE_AVX512(f, ...) \
  case ::vtk::Isa::kAvx512: return ::vtk::avx512::f(__VA_ARGS__);
#else
#define VTK_CASE_AVX512(f, ...)
#endif
#if defined(VTK_HAS_AVX2)
#define VTK_CASE_AVX2(f, ...) \
  case ::vtk::Isa::kAvx2: return ::vtk::avx2::f(__VA_ARGS__);
#else
#define VTK_CASE_AVX2(f, ...)
#endif
#define VTK_DISPATCH(f, ...)                         \
  switch (::vtk::chosen_isa()) {                     \
    VTK_CASE_AVX512_BF16(f, __VA_ARGS__)             \
    VTK_CASE_AVX512(f, __VA_ARGS__)                  \
    VTK_CASE_AVX2(f, __VA_ARGS__)                    \
    default: return ::vtk::portable::f(__VA_ARGS__); \
  }
// Declares one function in the namespace of each instruction set.
#define VTK_DECLARE(...)       \
  namespace vtk::portable {    \
  __VA_ARGS__;                 \
  }                            \
  namespace vtk::avx2 {        \
  __VA_ARGS__;                 \
  }                            \
  namespace vtk::avx512 {      \
  __VA_ARGS__;                 \
  }                            \
  namespace vtk::avx512_bf16 { \
  __VA_ARGS__;                 \
  }
