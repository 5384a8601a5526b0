// The multi-tensor ops' native side: lists of tensors become tables of pointers, cut into chunks for the threads.
#include "common/abi.h"
#include "sam/kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <vector>

namespace vtk {
namespace {

using Tensors = std::vector<Tensor>;
using Numbers = std::vector<double>;

void square_sums_on_chosen_isa(const SamItem* items, float eta, const Chunks& chunks, double* sums, const Parallel& parallel) {
  VTK_DISPATCH(sam_square_sums, items, eta, chunks, sums, parallel)
}
void perturb_on_chosen_isa(const SamItem* items, float eta, const Chunks& chunks, const Parallel& parallel) {
  VTK_DISPATCH(sam_perturb, items, eta, chunks, parallel)
}
void sgd_on_chosen_isa(const SgdStep& step, const Chunks& chunks, const Parallel& parallel) { VTK_DISPATCH(sgd_step, step, chunks, parallel) }
void adamw_on_chosen_isa(const AdamWStep& step, const Chunks& chunks, const Parallel& parallel) { VTK_DISPATCH(adamw_step, step, chunks, parallel) }

// long enough for the prefetchers to get going, short enough that the threads finish together
constexpr int64_t kChunkSize = 64 << 10;
// about the share of a cache a core may count on: less than this is still there when it is read again
constexpr int64_t kStreamFrom = 8 << 20;

// Chunks of fixed size in the order of the tensors, whatever the number of threads: sums come out the same.
class Cut {
 public:
  explicit Cut(const Tensors& tensors) {
    int64_t bytes = 0;
    for (size_t item = 0; item < tensors.size(); ++item) {
      const int64_t size = tensors[item].numel();
      bytes += size * tensors[item].element_size();
      for (int64_t begin = 0; begin < size; begin += kChunkSize) chunks_.push_back({static_cast<int32_t>(item), begin, std::min(kChunkSize, size - begin)});
    }
    stream_ = bytes >= kStreamFrom;
  }
  Chunks view() const { return {chunks_.data(), count(), stream_}; }
  int64_t count() const { return static_cast<int64_t>(chunks_.size()); }
  const Chunk& operator[](int64_t i) const { return chunks_[i]; }

 private:
  std::vector<Chunk> chunks_;
  bool stream_;
};

// The kernels go by the parameters' sizes: whoever called, nothing is read or written past an end.
void check_sizes(const Tensors& params, std::initializer_list<const Tensors*> companions) {
  for (const Tensors* tensors : companions) {
    STD_TORCH_CHECK(tensors->size() == params.size(), "a list holds ", tensors->size(), " tensors beside ", params.size(), " parameters");
    for (size_t i = 0; i < params.size(); ++i)
      STD_TORCH_CHECK((*tensors)[i].numel() == params[i].numel(), "tensor ", i, " of a list has ", (*tensors)[i].numel(), " elements, its parameter ",
                      params[i].numel());
  }
}

float number(const MaybeTensor& tensor, float absent) { return tensor ? *static_cast<const float*>(tensor->const_data_ptr()) : absent; }

std::vector<SamItem> sam_items(const Tensors& params, const Tensors& grads, const std::vector<int64_t>& adaptive) {
  std::vector<SamItem> items(params.size());
  for (size_t i = 0; i < items.size(); ++i) {
    // mutable for both uses; the norm only reads
    items[i] = {dtype_of(params[i]), params[i].mutable_data_ptr(), grads[i].const_data_ptr(), nullptr, adaptive[i] != 0, 0.0f};
  }
  return items;
}

double square_sum_of(const std::vector<SamItem>& items, double eta, const Cut& cut) {
  std::vector<double> sums(cut.count());
  square_sums_on_chosen_isa(items.data(), static_cast<float>(eta), cut.view(), sums.data(), torch_parallel());
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

void sam_square_sum(Tensors params, Tensors grads, std::vector<int64_t> adaptive, double eta, Tensor total) {
  check_sizes(params, {&grads});
  *static_cast<double*>(total.mutable_data_ptr()) = square_sum_of(sam_items(params, grads, adaptive), eta, Cut(params));
}

void copy_all(const Tensors& to, const Tensors& from) {
  const Cut cut(to);
  std::vector<char*> to_bytes;
  std::vector<const char*> from_bytes;
  for (size_t i = 0; i < to.size(); ++i) {
    to_bytes.push_back(static_cast<char*>(to[i].mutable_data_ptr()));
    from_bytes.push_back(static_cast<const char*>(from[i].const_data_ptr()));
  }
  auto run = [&](int64_t task) {
    const Chunk& chunk = cut[task];
    const int64_t size = to[chunk.item].element_size();
    memcpy(to_bytes[chunk.item] + chunk.begin * size, from_bytes[chunk.item] + chunk.begin * size, chunk.size * size);
  };
  torch_parallel().for_each(cut.count(), run);
}

void sam_perturb(Tensors params, Tensors grads, Tensors backups, MaybeTensor square_sum, Numbers rho, std::vector<int64_t> adaptive, double eta, double eps,
                 MaybeTensor grad_scale, MaybeTensor found_inf, Tensor norm) {
  check_sizes(params, {&grads, &backups});
  const Cut cut(params);
  std::vector<SamItem> items = sam_items(params, grads, adaptive);
  const double total = square_sum ? *static_cast<const double*>(square_sum->const_data_ptr()) : square_sum_of(items, eta, cut);
  const double scale = number(grad_scale, 1.0f);
  *mutable_floats(norm) = static_cast<float>(std::sqrt(total) / scale);
  if (!std::isfinite(total) && found_inf) *static_cast<float*>(found_inf->mutable_data_ptr()) = 1.0f;
  if (!std::isfinite(total) || number(found_inf, 0.0f) != 0.0f) return copy_all(backups, params);
  for (size_t i = 0; i < items.size(); ++i) {
    items[i].backup = backups[i].mutable_data_ptr();
    // a norm below float's range makes a factor above it
    items[i].factor = total == 0.0 ? 0.0f : static_cast<float>(std::min(rho[i] / (std::sqrt(total) + eps * scale), 3.4e38));
  }
  perturb_on_chosen_isa(items.data(), static_cast<float>(eta), cut.view(), torch_parallel());
}

void sam_restore(Tensors params, Tensors backups) {
  check_sizes(params, {&backups});
  copy_all(params, backups);
}

// What SGD and AdamW share. An empty list of backups: the step starts from the parameters.
std::vector<StepItem> step_items(const Tensors& params, const Tensors& grads, const Tensors& backups, const Numbers& lr, const Numbers& weight_decay,
                                 bool decoupled) {
  std::vector<StepItem> items(params.size());
  for (size_t i = 0; i < items.size(); ++i) {
    StepItem& item = items[i];
    item.dtype = dtype_of(params[i]);
    item.param = params[i].mutable_data_ptr();
    item.grad = grads[i].const_data_ptr();
    item.backup = backups.empty() ? item.param : backups[i].const_data_ptr();
    item.size = static_cast<float>(lr[i]);
    item.decay = decoupled ? static_cast<float>(1.0 - lr[i] * weight_decay[i]) : 1.0f;
    item.weight_decay = decoupled ? 0.0f : static_cast<float>(weight_decay[i]);
  }
  return items;
}

// The optimizer's skipped step: the parameters as they were.
bool skipped(const MaybeTensor& found_inf, const Tensors& params, const Tensors& backups) {
  if (!backups.empty()) check_sizes(params, {&backups});
  const bool skip = number(found_inf, 0.0f) != 0.0f;
  if (skip && !backups.empty()) copy_all(params, backups);
  return skip;
}

void sgd_step(Tensors params, Tensors grads, Tensors momentum_buffers, Tensors backups, Numbers lr, Numbers weight_decay, double momentum, bool nesterov,
              bool decoupled, bool maximize, MaybeTensor grad_scale, MaybeTensor found_inf) {
  check_sizes(params, {&grads});
  if (momentum != 0.0) check_sizes(params, {&momentum_buffers});
  if (skipped(found_inf, params, backups)) return;
  std::vector<StepItem> items = step_items(params, grads, backups, lr, weight_decay, decoupled);
  for (size_t i = 0; i < momentum_buffers.size(); ++i) items[i].first = momentum_buffers[i].mutable_data_ptr();
  const float grad_factor = (maximize ? -1.0f : 1.0f) / number(grad_scale, 1.0f);
  sgd_on_chosen_isa({items.data(), grad_factor, static_cast<float>(momentum), nesterov}, Cut(params).view(), torch_parallel());
}

void adamw_step(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors steps, Tensors backups, Numbers lr, Numbers weight_decay,
                double beta1, double beta2, double eps, bool decoupled, bool maximize, MaybeTensor grad_scale, MaybeTensor found_inf) {
  check_sizes(params, {&grads, &exp_avgs, &exp_avg_sqs});
  if (skipped(found_inf, params, backups)) return;
  std::vector<StepItem> items = step_items(params, grads, backups, lr, weight_decay, decoupled);
  for (size_t i = 0; i < items.size(); ++i) {
    const double step = *static_cast<float*>(steps[i].mutable_data_ptr()) += 1.0f;
    items[i].first = exp_avgs[i].mutable_data_ptr();
    items[i].second = exp_avg_sqs[i].mutable_data_ptr();
    items[i].size = static_cast<float>(lr[i] / (1.0 - std::pow(beta1, step)));
    items[i].root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, step)));
  }
  const float grad_factor = (maximize ? -1.0f : 1.0f) / number(grad_scale, 1.0f);
  const AdamWStep step{items.data(),           grad_factor, static_cast<float>(1.0 - beta1), static_cast<float>(beta2), static_cast<float>(1.0 - beta2),
                       static_cast<float>(eps)};
  adamw_on_chosen_isa(step, Cut(params).view(), torch_parallel());
}

}  // namespace
}  // namespace vtk

STABLE_TORCH_LIBRARY_FRAGMENT(vtkernels_native, m) {
  m.def("sam_square_sum(Tensor[] params, Tensor[] grads, int[] adaptive, float eta, Tensor(a!) total) -> ()");
  m.def(
      "sam_perturb(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] backups, Tensor? square_sum, float[] rho, int[] adaptive, float eta, float eps, "
      "Tensor? grad_scale, Tensor(c!)? found_inf, Tensor(d!) norm) -> ()");
  m.def("sam_restore(Tensor(a!)[] params, Tensor[] backups) -> ()");
  m.def(
      "sgd_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor[] backups, float[] lr, float[] weight_decay, float momentum, "
      "bool nesterov, bool decoupled, bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()");
  m.def(
      "adamw_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, Tensor[] backups, float[] lr, "
      "float[] weight_decay, float beta1, float beta2, float eps, bool decoupled, bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CPU, m) {
  m.impl("sam_square_sum", TORCH_BOX(&vtk::sam_square_sum));
  m.impl("sam_perturb", TORCH_BOX(&vtk::sam_perturb));
  m.impl("sam_restore", TORCH_BOX(&vtk::sam_restore));
  m.impl("sgd_step", TORCH_BOX(&vtk::sgd_step));
  m.impl("adamw_step", TORCH_BOX(&vtk::adamw_step));
}
