// Working memory of one thread, kept from call to call: fresh pages would cost more than small kernels.
#pragma once
#include <cstddef>

namespace vtk {

// At least `bytes` bytes, aligned to a cache line, valid until this thread asks again.
void* thread_scratch(size_t bytes);

// The same, apart from it: for what the thread that runs a call shares with those that help it.
void* shared_scratch(size_t bytes);

}  // namespace vtk
