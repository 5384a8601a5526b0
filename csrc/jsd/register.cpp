// The native op of jsd_consistency and augmix_loss: it writes into tensors the caller made.
#include "common/abi.h"
#include "jsd/kernel.h"

#include <memory>
#include <vector>

namespace vtk {
namespace {

void on_chosen_isa(const Jsd& call, const Parallel& parallel) { VTK_DISPATCH(jsd, call, parallel) }

// In an order of its own, and in double: the same for any number of threads.
double sum(const float* values, int64_t count) {
  constexpr int kChains = 8;
  double chains[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains)
    for (int k = 0; k < kChains; ++k) chains[k] += values[i + k];
  for (; i < count; ++i) chains[0] += values[i];
  double total = 0.0;
  for (const double chain : chains) total += chain;
  return total;
}

// -1, or the first target that names no class: then nothing was written.
int64_t jsd(Tensor logits, MaybeTensor target, MaybeTensor grad_loss, int64_t num_views, std::vector<double> view_weights, double weight,
            double label_smoothing, double share, MaybeTensor loss, MaybeTensor gradient) {
  STD_TORCH_CHECK(logits.dim() == 2 && (logits.stride(1) == 1 || logits.size(1) == 1), "logits must be [views * batch, classes] with dense rows");
  const std::vector<float> weights(view_weights.begin(), view_weights.end());
  Jsd call{};
  call.batch = logits.size(0) / num_views;
  call.classes = logits.size(1);
  call.views = static_cast<int>(num_views);
  call.view_weights = weights.data();
  call.weight = static_cast<float>(weight);
  call.label_smoothing = static_cast<float>(label_smoothing);
  call.dtype = dtype_of(logits);
  call.logits = logits.const_data_ptr();
  call.row_stride = logits.stride(0);
  if (target && target->dim() == 1) {
    call.classes_wanted = static_cast<const int64_t*>(target->const_data_ptr());
    for (int64_t i = 0; i < call.batch; ++i)
      if (call.classes_wanted[i] < 0 || call.classes_wanted[i] >= call.classes) return i;
  } else if (target) {
    call.soft_target = floats(target);
  }
  if (gradient) {
    call.gradient = gradient->mutable_data_ptr();
    call.share = static_cast<float>(share);
    call.grad_loss = floats(grad_loss);
    call.grad_stride = grad_loss && grad_loss->dim() == 1 ? grad_loss->stride(0) : 0;
  }
  std::unique_ptr<float[]> of_samples;
  if (loss && loss->dim() == 1) {
    call.losses = mutable_floats(loss);
  } else if (loss) {
    of_samples.reset(new float[static_cast<size_t>(call.batch)]);
    call.losses = of_samples.get();
  }
  if (call.batch) on_chosen_isa(call, torch_parallel());
  if (of_samples) *mutable_floats(loss) = static_cast<float>(sum(call.losses, call.batch) * share);
  return -1;
}

}  // namespace
}  // namespace vtk

STABLE_TORCH_LIBRARY_FRAGMENT(vtkernels_native, m) {
  m.def(
      "jsd(Tensor logits, Tensor? target, Tensor? grad_loss, int num_views, float[] view_weights, float weight, float label_smoothing, float share, "
      "Tensor(a!)? loss, Tensor(b!)? gradient) -> int");
}
STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CPU, m) { m.impl("jsd", TORCH_BOX(&vtk::jsd)); }
