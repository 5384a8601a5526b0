#include "common/scratch.h"

#include <cstdlib>
#include <new>

namespace vtk {
namespace {

struct Scratch {
  void* memory = nullptr;
  size_t bytes = 0;
  ~Scratch() { std::free(memory); }

  void* at_least(size_t wanted) {
    if (wanted > bytes) {
      std::free(memory);
      bytes = 0;
      const size_t rounded = (wanted + 4095) / 4096 * 4096;
      memory = std::aligned_alloc(4096, rounded);
      if (memory == nullptr) throw std::bad_alloc();
      bytes = rounded;
    }
    return memory;
  }
};
thread_local Scratch own, shared;

}  // namespace

void* thread_scratch(size_t bytes) { return own.at_least(bytes); }

void* shared_scratch(size_t bytes) { return shared.at_least(bytes); }

}  // namespace vtk
