// Class and pooled attention for one instruction set.
#include "class_attention/class_token.h"
#include "class_attention/pooled.h"

namespace vtk::VTK_ISA {

void class_attention_forward(const ClassAttention& call, const Parallel& parallel) { ClassToken(call, parallel).forward(); }

void class_attention_backward(const ClassAttention& call, const Parallel& parallel) { ClassToken(call, parallel).backward(); }

void pooled_attention_forward(const PooledAttention& call, const Parallel& parallel) {
  auto run = [&](int64_t item) {
    with_scratch([&](Carver& carver) {
      Pooled one(call, item, carver);
      if (carver.memory) one.forward();
    });
    stream_fence();
  };
  parallel.for_each(call.batch * call.heads, run);
}

void pooled_attention_backward(const PooledAttention& call, const Parallel& parallel) {
  auto run = [&](int64_t item) {
    with_scratch([&](Carver& carver) {
      Pooled one(call, item, carver);
      float *grad = carver.take<float>(call.queries * call.dim), *d_s = carver.take<float>(one.padded());
      if (carver.memory) one.backward(grad, d_s);
    });
  };
  parallel.for_each(call.batch * call.heads, run);
}

}  // namespace vtk::VTK_ISA
