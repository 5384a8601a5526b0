// Rows of any storage type as rows of floats, and back.
#pragma once
#include "class_attention/products.h"

namespace vtk::VTK_ISA {

// Results beyond the caches are written past them: reading a line only to overwrite it costs a third of the traffic.
constexpr int64_t kStreamFromBytes = 8 << 20;

// f(a value of the storage type)
template <class F>
VTK_INLINE void with_type(DType dtype, F f) {
  if (dtype == DType::kFloat32) return f(float{});
  if (dtype == DType::kBFloat16) return f(BFloat16{});
  f(Half{});
}
VTK_INLINE int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }
VTK_INLINE const void* at(const void* data, DType dtype, int64_t element) { return (const char*)data + element * size_of(dtype); }
VTK_INLINE void* at(void* data, DType dtype, int64_t element) { return (char*)data + element * size_of(dtype); }

VTK_NOINLINE void copy_rows(const void* from, DType dtype, int64_t ld, int64_t rows, int64_t columns, float* to, float scale) {
  with_type(dtype, [&](auto type) __attribute__((always_inline)) {
    const V factor = set1(scale);
    for (int64_t i = 0; i < rows; ++i) {
      const auto* row = (const decltype(type)*)from + i * ld;
      float* out = to + i * columns;
      int64_t c = 0;
      for (; c + W <= columns; c += W) store(out + c, load_row(row + c, W) * factor);
      if (c < columns) store_row(out + c, load_row(row + c, (int)(columns - c)) * factor, (int)(columns - c));
    }
  });
}

struct FloatRows {
  const float* data;
  int64_t ld;
};
// The rows themselves where they are floats, else a copy in `scratch`.
VTK_INLINE FloatRows as_floats(const void* from, DType dtype, int64_t ld, int64_t rows, int64_t columns, float* scratch) {
  if (dtype == DType::kFloat32) return {(const float*)from, ld};
  copy_rows(from, dtype, ld, rows, columns, scratch, 1.0f);
  return {scratch, columns};
}

VTK_NOINLINE void write_rows(const float* from, int64_t rows, int64_t columns, void* to, DType dtype, int64_t ld, bool stream) {
  with_type(dtype, [&](auto type) __attribute__((always_inline)) {
    for (int64_t i = 0; i < rows; ++i) {
      auto* row = (decltype(type)*)to + i * ld;
      const float* in = from + i * columns;
      int64_t c = 0;
      if (stream)
        for (; c + W <= columns; c += W) stream_row(row + c, load(in + c));
      for (; c + W <= columns; c += W) store_row(row + c, load(in + c), W);
      if (c < columns) store_row(row + c, load_row(in + c, (int)(columns - c)), (int)(columns - c));
    }
  });
}

struct Target {  // rows of any storage type
  void* data;
  DType dtype;
  int64_t ld;
  bool stream;
};
// A mix whose rows go to `to`; `scratch` holds kMost rows of floats.
VTK_INLINE void mix_into(Mix d, int64_t rows, int64_t columns, const Target& to, float* scratch) {
  if (to.dtype == DType::kFloat32) {
    d.out = (float*)to.data;
    d.ldo = to.ld;
    d.stream = to.stream;
    return mix(d, rows, columns);
  }
  d.out = scratch;
  d.ldo = columns;
  d.stream = false;
  for (int64_t i = 0; i < rows; i += kMost) {
    const int64_t count = least(kMost, rows - i);
    mix(d, count, columns);
    write_rows(scratch, count, columns, at(to.data, to.dtype, i * to.ld), to.dtype, to.ld, to.stream);
    for (Term& term : d.terms) term.a += kMost * term.row;
  }
}

// Whether results of so many bytes, in rows of so many columns, go past the caches.
VTK_INLINE bool stream_results(const void* data, DType dtype, int64_t rows, int64_t columns) {
  return W > 4 && rows * columns * size_of(dtype) > kStreamFromBytes && columns * size_of(dtype) % 64 == 0 && (uintptr_t)data % 64 == 0;
}

}  // namespace vtk::VTK_ISA
