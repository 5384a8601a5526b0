#include "common/scratch.h"

#include <cstdlib>
#include <new>

namespace vtk {
namespace {

struct Scratch {
  void* memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { std::free(memory); }
};
thread_local Scratch scratch;

}  // namespace

void* thread_scratch(size_t bytes) {
  if (bytes > scratch.bytes) {
    std::free(scratch.memory);
    scratch.bytes = 0;
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    scratch.memory = std::aligned_alloc(4096, rounded);
    if (scratch.memory == nullptr) throw std::bad_alloc();
    scratch.bytes = rounded;
  }
  return scratch.memory;
}

}  // namespace vtk
