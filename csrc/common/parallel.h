// How a kernel, which knows nothing of torch, runs on torch's threads.
#pragma once
#include <cstdint>

namespace vtk {

struct Parallel {
  int threads;
  // calls body(context, task) for each task, on any thread, and returns when all are done
  void (*run)(int64_t tasks, void (*body)(void* context, int64_t task), void* context);

  template <class F>
  void for_each(int64_t tasks, F& f) const {
    run(tasks, [](void* context, int64_t task) { (*static_cast<F*>(context))(task); }, &f);
  }
};

}  // namespace vtk
