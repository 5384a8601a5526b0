// The multi-tensor ops on NVIDIA GPUs. Each walks memory once and is limited by it; sums are added in a fixed order, without atomics.
#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "common/launch.cuh"
#include "sam/cuda_table.cuh"

namespace vtk {
namespace {

constexpr int kFinishThreads = 1024;
// A float32 sum of squares that is smaller, or not finite, may be float32's fault: gradients of 1e-12 stay above it
constexpr double kSmallestSum = 1e-20;

using SamTable = Table<3, 1>;
using RestoreTable = Table<2, 0>;
using SgdTable = Table<4, 2>;
using AdamWTable = Table<5, 1>;

// ---- SAM -----------------------------------------------------------------------------------------------------------------

// The sum over the block, in every thread; pairs of threads in a fixed order.
__device__ double block_sum(double value) {
  __shared__ double warps[32];
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0.0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += warps[warp];
  __syncthreads();
  return total;
}

// Squares of a chunk, each thread its own, in `Sum`; T is 1 where the tensor is not marked.
template <class Sum, class T>
__device__ Sum squares(const SamTable& table, const Place& place, float eta) {
  const T *w = array_of<T>(table, 0, place), *g = array_of<T>(table, 1, place);
  const bool adaptive = place.flags & kMarked;
  Sum sums[16 / sizeof(T)]{};
  walk<T>(place, [&](int i, auto width) {
    constexpr int N = decltype(width)::kValue;
    Floats<N> values = widen(load<N>(g + i));
    if (adaptive) {
      const Floats<N> weights = widen(load<N>(w + i));
#pragma unroll
      for (int k = 0; k < N; ++k) values.values[k] *= fabsf(weights.values[k]) + eta;
    }
#pragma unroll
    for (int k = 0; k < N; ++k) sums[k] += static_cast<Sum>(values.values[k]) * static_cast<Sum>(values.values[k]);
  });
  Sum sum = sums[0];
#pragma unroll
  for (size_t k = 1; k < 16 / sizeof(T); ++k) sum += sums[k];
  return sum;
}

__global__ void __launch_bounds__(kThreads) sam_square_sum_kernel(const __grid_constant__ SamTable table, float eta, double* chunk_sums) {
  const Place place = find_chunk(table);
  with_type(place, [&](auto zero) {
    using T = decltype(zero);
    double total = block_sum(squares<float, T>(table, place, eta));
    // also for zeros and for NaN, at the price of reading the chunk again
    if (!(total >= kSmallestSum && total < INFINITY)) total = block_sum(squares<double, T>(table, place, eta));
    if (threadIdx.x == 0) chunk_sums[blockIdx.x] = total;
  });
}

__device__ double sum_of_all(const double* chunk_sums, int64_t count) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kFinishThreads) sum += chunk_sums[i];
  return block_sum(sum);
}

__global__ void __launch_bounds__(kFinishThreads) sam_total_kernel(const double* chunk_sums, int64_t count, double* total) {
  const double sum = sum_of_all(chunk_sums, count);
  if (threadIdx.x == 0) *total = sum;
}

struct Climb {
  // 1 / (norm + eps), 0 where there is no gradient at all; and whether the parameters may change
  double per_rho, wanted;
};

__global__ void __launch_bounds__(kFinishThreads)
    sam_norm_kernel(const double* chunk_sums, int64_t count, double eps, const float* grad_scale, float* found_inf, float* norm, Climb* climb) {
  const double total = sum_of_all(chunk_sums, count);
  if (threadIdx.x != 0) return;
  const double scale = grad_scale ? *grad_scale : 1.0, root = sqrt(total);
  const bool finite = total < INFINITY;
  if (found_inf && !finite) *found_inf = 1.0f;
  *norm = static_cast<float>(root / scale);
  // scaled gradients have a scaled norm: their quotient is the same, if eps is scaled too
  climb->per_rho = total == 0.0 ? 0.0 : 1.0 / (root + eps * scale);
  climb->wanted = finite && (!found_inf || *found_inf == 0.0f);
}

__global__ void __launch_bounds__(kThreads) sam_perturb_kernel(const __grid_constant__ SamTable table, float eta, const Climb* climb) {
  const Place place = find_chunk(table);
  // a norm below float's range makes a factor above it
  const float factor = static_cast<float>(fmin(table.numbers[0][place.tensor] * climb->per_rho, 3.4e38));
  const bool adaptive = place.flags & kMarked, wanted = climb->wanted != 0.0;
  with_type(place, [&](auto zero) {
    using T = decltype(zero);
    if (!wanted) return copy_chunk<T>(table, place, 2, 0);
    T *w = array_of<T>(table, 0, place), *backup = array_of<T>(table, 2, place);
    const T* g = array_of<T>(table, 1, place);
    walk<T>(place, [&](int i, auto width) {
      constexpr int N = decltype(width)::kValue;
      const Pack<T, N> old = load<N>(w + i);
      const Floats<N> step = widen(load<N>(g + i));
      Floats<N> values = widen(old);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float t = adaptive ? fabsf(values.values[k]) + eta : 1.0f;
        // T^2 g may overflow where the step does not
        values.values[k] += t * (t * (step.values[k] * factor));
      }
      store<N>(backup + i, old);
      store<N>(w + i, values);
    });
  });
}

__global__ void __launch_bounds__(kThreads) sam_restore_kernel(const __grid_constant__ RestoreTable table) {
  const Place place = find_chunk(table);
  with_type(place, [&](auto zero) { copy_chunk<decltype(zero)>(table, place, 0, 1); });
}

// ---- steps ---------------------------------------------------------------------------------------------------------------

// Lists: params, grads, where the step starts from (params, or backups), and the optimizer's state.
enum StepList { kParam, kGrad, kOld, kFirst, kSecond };
// Of a tensor: what the weights are multiplied by (decoupled), or what of them is added to the gradient; SGD's learning rate.
enum StepNumber { kDecay, kRate };

struct Step {
  const float *grad_scale, *found_inf;
  float sign;
  bool decoupled, from_backups;

  __device__ bool wanted() const { return !found_inf || *found_inf == 0.0f; }
  __device__ float gradient_factor() const { return grad_scale ? sign / *grad_scale : sign; }
};

__global__ void __launch_bounds__(kThreads)
    sgd_step_kernel(const __grid_constant__ SgdTable table, const __grid_constant__ Step step, float momentum, bool nesterov) {
  const Place place = find_chunk(table);
  const bool wanted = step.wanted();
  const float lr = table.numbers[kRate][place.tensor], decay = table.numbers[kDecay][place.tensor];
  const float shrink = step.decoupled ? decay : 1.0f, penalty = step.decoupled ? 0.0f : decay, factor = step.gradient_factor();
  with_type(place, [&](auto zero) {
    using T = decltype(zero);
    if (!wanted) {
      if (step.from_backups) copy_chunk<T>(table, place, kParam, kOld);
      return;
    }
    T *param = array_of<T>(table, kParam, place), *buffer = array_of<T>(table, kFirst, place);
    const T *grad = array_of<T>(table, kGrad, place), *old = array_of<T>(table, kOld, place);
    walk<T>(place, [&](int i, auto width) {
      constexpr int N = decltype(width)::kValue;
      Floats<N> w = widen(load<N>(old + i)), d = widen(load<N>(grad + i)), b{};
      if (momentum != 0.0f) b = widen(load<N>(buffer + i));
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float g = d.values[k] * factor + penalty * w.values[k];
        b.values[k] = momentum * b.values[k] + g;
        d.values[k] = nesterov ? g + momentum * b.values[k] : b.values[k];
        w.values[k] = w.values[k] * shrink - lr * d.values[k];
      }
      if (momentum != 0.0f) store<N>(buffer + i, b);
      store<N>(param + i, w);
    });
  });
}

struct Steps {
  float* steps[kMaxTensors];
  double lr[kMaxTensors];
  int tensors;
};

// Advances each tensor's number of steps, once; its two corrections of the bias, the learning rate in the first.
__global__ void __launch_bounds__(kThreads)
    adamw_corrections_kernel(const __grid_constant__ Steps steps, const float* found_inf, double beta1, double beta2, float* corrections) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= steps.tensors) return;
  const double step = *steps.steps[i] + 1.0;
  if (!found_inf || *found_inf == 0.0f) *steps.steps[i] = static_cast<float>(step);
  corrections[i] = static_cast<float>(steps.lr[i] / (1.0 - pow(beta1, step)));
  corrections[steps.tensors + i] = static_cast<float>(1.0 / sqrt(1.0 - pow(beta2, step)));
}

// 1 - beta, which float32 does not find from beta, is given too.
struct AdamW {
  float beta2, rest1, rest2, eps;
};

__global__ void __launch_bounds__(kThreads)
    adamw_step_kernel(const __grid_constant__ AdamWTable table, const __grid_constant__ Step step, AdamW adam, const float* corrections) {
  const Place place = find_chunk(table);
  const bool wanted = step.wanted();
  const float size = corrections[place.tensor], root = corrections[table.tensors + place.tensor], decay = table.numbers[kDecay][place.tensor];
  const float shrink = step.decoupled ? decay : 1.0f, penalty = step.decoupled ? 0.0f : decay, factor = step.gradient_factor();
  with_type(place, [&](auto zero) {
    using T = decltype(zero);
    if (!wanted) {
      if (step.from_backups) copy_chunk<T>(table, place, kParam, kOld);
      return;
    }
    T *param = array_of<T>(table, kParam, place), *first = array_of<T>(table, kFirst, place), *second = array_of<T>(table, kSecond, place);
    const T *grad = array_of<T>(table, kGrad, place), *old = array_of<T>(table, kOld, place);
    walk<T>(place, [&](int i, auto width) {
      constexpr int N = decltype(width)::kValue;
      Floats<N> w = widen(load<N>(old + i)), m = widen(load<N>(first + i)), v = widen(load<N>(second + i));
      const Floats<N> gradient = widen(load<N>(grad + i));
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float g = gradient.values[k] * factor + penalty * w.values[k];
        m.values[k] += adam.rest1 * (g - m.values[k]);
        v.values[k] = adam.beta2 * v.values[k] + adam.rest2 * g * g;
        w.values[k] = w.values[k] * shrink - size * m.values[k] / (sqrtf(v.values[k]) * root + adam.eps);
      }
      store<N>(first + i, m);
      store<N>(second + i, v);
      store<N>(param + i, w);
    });
  });
}

// ---- ops -----------------------------------------------------------------------------------------------------------------

template <class T>
T* scratch(const Tensor& like, std::vector<Tensor>& keep, int64_t count) {
  static_assert(sizeof(T) % sizeof(float) == 0);
  // a tensor, so that torch's allocator knows the stream
  keep.push_back(torch::stable::new_empty(like, {count * static_cast<int64_t>(sizeof(T) / sizeof(float))}, torch::headeronly::ScalarType::Float));
  return static_cast<T*>(keep.back().mutable_data_ptr());
}

const double* chunk_sums(const Launch& launch, const SamTable& table, int64_t chunks, double eta, double* sums) {
  launch(sam_square_sum_kernel, chunks, kThreads, table, static_cast<float>(eta), sums);
  return sums;
}

void sam_square_sum(Tensors params, Tensors grads, std::vector<int64_t> adaptive, double eta, Tensor total) {
  const Launch launch(params[0]);
  const Tensors none;
  SamTable table;
  const int64_t chunks = fill_table(table, {&params, &grads, &none}, &adaptive);
  Tensors keep;
  const double* sums = chunk_sums(launch, table, chunks, eta, scratch<double>(params[0], keep, chunks));
  launch(sam_total_kernel, 1, kFinishThreads, sums, chunks, static_cast<double*>(total.mutable_data_ptr()));
}

void sam_perturb(Tensors params, Tensors grads, Tensors backups, MaybeTensor square_sum, Numbers rho, std::vector<int64_t> adaptive, double eta, double eps,
                 MaybeTensor grad_scale, MaybeTensor found_inf, Tensor norm) {
  const Launch launch(params[0]);
  SamTable table;
  const int64_t chunks = fill_table(table, {&params, &grads, &backups}, &adaptive);
  for (size_t i = 0; i < rho.size(); ++i) table.numbers[0][i] = static_cast<float>(rho[i]);
  Tensors keep;
  Climb* climb = scratch<Climb>(params[0], keep, 1);
  const double* sums =
      square_sum ? static_cast<const double*>(square_sum->const_data_ptr()) : chunk_sums(launch, table, chunks, eta, scratch<double>(params[0], keep, chunks));
  launch(sam_norm_kernel, 1, kFinishThreads, sums, square_sum ? 1 : chunks, eps, floats(grad_scale), mutable_floats(found_inf),
         static_cast<float*>(norm.mutable_data_ptr()), climb);
  launch(sam_perturb_kernel, chunks, kThreads, table, static_cast<float>(eta), climb);
}

void sam_restore(Tensors params, Tensors backups) {
  const Launch launch(params[0]);
  RestoreTable table;
  const int64_t chunks = fill_table(table, {&params, &backups});
  launch(sam_restore_kernel, chunks, kThreads, table);
}

template <class T>
void set_decay(T& table, const Numbers& lr, const Numbers& weight_decay, bool decoupled) {
  for (size_t i = 0; i < lr.size(); ++i) table.numbers[kDecay][i] = static_cast<float>(decoupled ? 1.0 - lr[i] * weight_decay[i] : weight_decay[i]);
}

void sgd_step(Tensors params, Tensors grads, Tensors momentum_buffers, Tensors backups, Numbers lr, Numbers weight_decay, double momentum, bool nesterov,
              bool decoupled, bool maximize, MaybeTensor grad_scale, MaybeTensor found_inf) {
  const Launch launch(params[0]);
  SgdTable table;
  const int64_t chunks = fill_table(table, {&params, &grads, backups.empty() ? &params : &backups, &momentum_buffers});
  set_decay(table, lr, weight_decay, decoupled);
  for (size_t i = 0; i < lr.size(); ++i) table.numbers[kRate][i] = static_cast<float>(lr[i]);
  const Step step{floats(grad_scale), floats(found_inf), maximize ? -1.0f : 1.0f, decoupled, !backups.empty()};
  launch(sgd_step_kernel, chunks, kThreads, table, step, static_cast<float>(momentum), nesterov);
}

void adamw_step(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors steps, Tensors backups, Numbers lr, Numbers weight_decay,
                double beta1, double beta2, double eps, bool decoupled, bool maximize, MaybeTensor grad_scale, MaybeTensor found_inf) {
  const Launch launch(params[0]);
  AdamWTable table;
  const int64_t chunks = fill_table(table, {&params, &grads, backups.empty() ? &params : &backups, &exp_avgs, &exp_avg_sqs});
  set_decay(table, lr, weight_decay, decoupled);
  Steps counts;
  counts.tensors = table.tensors;
  for (int i = 0; i < table.tensors; ++i) {
    counts.steps[i] = static_cast<float*>(steps[i].mutable_data_ptr());
    counts.lr[i] = lr[i];
  }
  Tensors keep;
  float* corrections = scratch<float>(params[0], keep, 2 * table.tensors);
  launch(adamw_corrections_kernel, (table.tensors + kThreads - 1) / kThreads, kThreads, counts, floats(found_inf), beta1, beta2, corrections);
  const Step step{floats(grad_scale), floats(found_inf), maximize ? -1.0f : 1.0f, decoupled, !backups.empty()};
  const AdamW adam{static_cast<float>(beta2), static_cast<float>(1.0 - beta1), static_cast<float>(1.0 - beta2), static_cast<float>(eps)};
  launch(adamw_step_kernel, chunks, kThreads, table, step, adam, corrections);
}

}  // namespace
}  // namespace vtk

STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CUDA, m) {
  m.impl("sam_square_sum", TORCH_BOX(&vtk::sam_square_sum));
  m.impl("sam_perturb", TORCH_BOX(&vtk::sam_perturb));
  m.impl("sam_restore", TORCH_BOX(&vtk::sam_restore));
  m.impl("sgd_step", TORCH_BOX(&vtk::sgd_step));
  m.impl("adamw_step", TORCH_BOX(&vtk::adamw_step));
}
