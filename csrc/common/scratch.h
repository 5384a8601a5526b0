// Working memory of one thread, kept from call to call: fresh pages would cost more than small kernels.
#pragma once
#include <cstddef>

namespace vtk {

// At least `bytes` bytes, aligned to a cache line, valid until this thread asks again.
void* thread_scratch(size_t bytes);

}  // namespace vtk
