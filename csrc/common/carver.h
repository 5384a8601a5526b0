// Working memory cut into pieces: measured first, then taken.
#pragma once
#include <cstddef>

#include "common/scratch.h"
#include "common/simd.h"

namespace vtk::VTK_ISA {

// Hands out pieces of one block of memory; with a null block it only adds up what is needed.
struct Carver {
  char* memory;
  size_t used = 0;

  template <class T>
  T* take(size_t count) {
    T* piece = memory ? reinterpret_cast<T*>(memory + used) : nullptr;
    used += (count * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
};

// Runs body(carver) twice: to measure the memory it takes, and in that memory.
template <class Body>
VTK_INLINE void with_scratch(Body body) {
  Carver measure{nullptr};
  body(measure);
  Carver real{(char*)thread_scratch(measure.used)};
  body(real);
}

}  // namespace vtk::VTK_ISA
