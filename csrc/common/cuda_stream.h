// torch's current CUDA stream. No CUDA header is needed, so that this can be compiled and asked anywhere.
#pragma once
#include <dlfcn.h>

#include <cstdint>

namespace vtk {

// Sets `stream` to the current one of the device; 0 if all went well.
using CurrentStream = int32_t (*)(int32_t device, void** stream);

// Null where torch has no CUDA. Only torch's CUDA builds have the function, in a library that nobody else's symbols are looked up in: torch
// loads its libraries for itself, and the one that we link with does not need it. So it is asked for by name, where torch has loaded it.
inline CurrentStream current_cuda_stream() {
  static const CurrentStream found = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return torch_cuda ? reinterpret_cast<CurrentStream>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  return found;
}

}  // namespace vtk
