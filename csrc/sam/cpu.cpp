// The multi-tensor ops: each reads and writes every number once and is limited by memory, not by arithmetic.
#include "sam/kernel.h"

#include "common/simd.h"

namespace vtk::VTK_ISA {
namespace {

// f(T{}) for the storage type
template <class F>
VTK_INLINE auto with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::kBFloat16: return f(BFloat16{});
    case DType::kFloat16: return f(Half{});
    default: return f(float{});
  }
}

// step(i, count, fresh) for whole vectors, then for the rest. fresh(p, v, count) stores past the caches where `to` allows it:
// for what is written without having been read. A line that was just read is in the cache already, and an ordinary store is faster.
template <class T, class Step>
VTK_INLINE void walk(int64_t size, bool stream, const T* to, Step step) {
  const int64_t whole = size / W * W;
  auto keep = [](T* p, V v, int count) __attribute__((always_inline)) { store_row(p, v, count); };
  if (stream && reinterpret_cast<uintptr_t>(to) % (W * sizeof(T)) == 0) {
    auto past = [](T* p, V v, int) __attribute__((always_inline)) { stream_row(p, v); };
    for (int64_t i = 0; i < whole; i += W) step(i, W, past);
    stream_fence();
  } else {
    for (int64_t i = 0; i < whole; i += W) step(i, W, keep);
  }
  if (whole < size) step(whole, (int)(size - whole), keep);
}

VTK_INLINE V magnitude(V v) { return (V)((I)v & 0x7FFFFFFF); }

// In double: no gradient a float can hold overflows, and a sum of many keeps its digits.
template <class T>
double square_sum(const SamItem& item, const Chunk& chunk, float eta) {
  const T *g = (const T*)item.grad + chunk.begin, *w = (const T*)item.param + chunk.begin;
  // four sums, as an addition takes longer than the loads before it, of four stretches, as the prefetchers of one core follow
  // several streams faster than one
  constexpr int kSums = 4;
  D low[kSums]{}, high[kSums]{};
  auto add = [](D& low_sum, D& high_sum, V v) __attribute__((always_inline)) {
    const D a = low_doubles(v), b = high_doubles(v);
    low_sum = fma(a, a, low_sum);
    high_sum = fma(b, b, high_sum);
  };
  const int64_t stretch = item.adaptive ? 0 : chunk.size / (kSums * W) * W;
  for (int64_t i = 0; i < stretch; i += W) {
    VTK_UNROLL for (int k = 0; k < kSums; ++k) add(low[k], high[k], load_row(g + k * stretch + i, W));
  }
  for (int64_t i = kSums * stretch; i < chunk.size; i += W) {
    const int count = chunk.size - i < W ? (int)(chunk.size - i) : W;
    // lanes past the end are 0 in both
    const V v = load_row(g + i, count);
    add(low[0], high[0], item.adaptive ? (magnitude(load_row(w + i, count)) + eta) * v : v);
  }
  double total = 0.0;
  VTK_UNROLL for (int k = 0; k < kSums; ++k) {
    const D both = low[k] + high[k];
    for (int lane = 0; lane < W / 2; ++lane) total += both[lane];
  }
  return total;
}

// backup = w to the bit, w += T^2 g factor
template <class T>
void perturb(const SamItem& item, const Chunk& chunk, float eta, bool stream) {
  T *w = (T*)item.param + chunk.begin, *backup = (T*)item.backup + chunk.begin;
  const T* g = (const T*)item.grad + chunk.begin;
  const V factor = set1(item.factor);
  // a half-precision number does not survive the way through float to the bit: denormals, what a NaN carries
  constexpr bool kThroughVectors = sizeof(T) == 4;
  if (!kThroughVectors) memcpy(backup, w, chunk.size * sizeof(T));
  auto climb = [&](auto climbed) __attribute__((always_inline)) {
    auto step = [&](int64_t i, int count, auto fresh) __attribute__((always_inline)) {
      const V old = load_row(w + i, count);
      if (kThroughVectors) fresh(backup + i, old, count);
      store_row(w + i, climbed(old, load_row(g + i, count)), count);
    };
    walk(chunk.size, stream && kThroughVectors, backup, step);
  };
  if (item.adaptive)
    climb([=](V old, V grad) __attribute__((always_inline)) {
      const V t = magnitude(old) + eta;
      // T^2 g may overflow where the step does not
      return fma(t, t * (grad * factor), old);
    });
  else
    climb([=](V old, V grad) __attribute__((always_inline)) { return fma(grad, factor, old); });
}

template <class T>
void sgd(const SgdStep& call, const StepItem& item, const Chunk& chunk, bool stream) {
  T *w = (T*)item.param + chunk.begin, *buffer = (T*)item.first + chunk.begin;
  const T *g = (const T*)item.grad + chunk.begin, *from = (const T*)item.backup + chunk.begin;
  const V grad_factor = set1(call.grad_factor), decay = set1(item.decay), weight_decay = set1(item.weight_decay), size = set1(-item.size),
          momentum = set1(call.momentum);
  if (!item.first) {
    auto step = [&](int64_t i, int count, auto fresh) __attribute__((always_inline)) {
      const V old = load_row(from + i, count), d = fma(load_row(g + i, count), grad_factor, weight_decay * old);
      fresh(w + i, fma(size, d, old * decay), count);
    };
    return walk(chunk.size, stream, w, step);
  }
  auto step = [&](int64_t i, int count, auto fresh) __attribute__((always_inline)) {
    const V old = load_row(from + i, count), d = fma(load_row(g + i, count), grad_factor, weight_decay * old);
    const V b = fma(load_row(buffer + i, count), momentum, d);
    store_row(buffer + i, b, count);
    fresh(w + i, fma(size, call.nesterov ? fma(b, momentum, d) : b, old * decay), count);
  };
  walk(chunk.size, stream, w, step);
}

template <class T>
void adamw(const AdamWStep& call, const StepItem& item, const Chunk& chunk, bool stream) {
  T *w = (T*)item.param + chunk.begin, *m = (T*)item.first + chunk.begin, *v = (T*)item.second + chunk.begin;
  const T *g = (const T*)item.grad + chunk.begin, *from = (const T*)item.backup + chunk.begin;
  const V grad_factor = set1(call.grad_factor), decay = set1(item.decay), weight_decay = set1(item.weight_decay), size = set1(-item.size),
          root = set1(item.root), eps = set1(call.eps), beta2 = set1(call.beta2), fresh1 = set1(call.fresh1), fresh2 = set1(call.fresh2);
  auto step = [&](int64_t i, int count, auto fresh) __attribute__((always_inline)) {
    const V old = load_row(from + i, count), d = fma(load_row(g + i, count), grad_factor, weight_decay * old);
    const V old_m = load_row(m + i, count), new_m = fma(fresh1, d - old_m, old_m);
    const V new_v = fma(beta2, load_row(v + i, count), fresh2 * d * d);
    store_row(m + i, new_m, count);
    store_row(v + i, new_v, count);
    fresh(w + i, fma(size, new_m / fma(square_root(new_v), root, eps), old * decay), count);
  };
  walk(chunk.size, stream, w, step);
}

// a step that starts from the parameters themselves reads what it writes
VTK_INLINE bool streams(const Chunks& chunks, const StepItem& item) { return chunks.stream && item.backup != item.param; }

// f(chunk's index) for all, each by the next thread that is free: memory does not serve all cores alike
template <class F>
VTK_INLINE void for_each_chunk(const Chunks& chunks, const Parallel& parallel, F f) {
  int64_t next = 0;
  auto run = [&](int64_t) {
    for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < chunks.count;) f(i);
  };
  parallel.for_each(parallel.threads, run);
}

}  // namespace

void sam_square_sums(const SamItem* items, float eta, const Chunks& chunks, double* sums, const Parallel& parallel) {
  for_each_chunk(chunks, parallel, [&](int64_t i) {
    const Chunk& chunk = chunks.chunks[i];
    const SamItem& item = items[chunk.item];
    sums[i] = with_type(item.dtype, [&](auto type) { return square_sum<decltype(type)>(item, chunk, eta); });
  });
}

void sam_perturb(const SamItem* items, float eta, const Chunks& chunks, const Parallel& parallel) {
  for_each_chunk(chunks, parallel, [&](int64_t i) {
    // from the last chunk to the first: the gradients the norm read last are still in the cache
    const Chunk& chunk = chunks.chunks[chunks.count - 1 - i];
    const SamItem& item = items[chunk.item];
    with_type(item.dtype, [&](auto type) { perturb<decltype(type)>(item, chunk, eta, chunks.stream); });
  });
}

void sgd_step(const SgdStep& step, const Chunks& chunks, const Parallel& parallel) {
  for_each_chunk(chunks, parallel, [&](int64_t i) {
    const Chunk& chunk = chunks.chunks[i];
    const StepItem& item = step.items[chunk.item];
    with_type(item.dtype, [&](auto type) { sgd<decltype(type)>(step, item, chunk, streams(chunks, item)); });
  });
}

void adamw_step(const AdamWStep& step, const Chunks& chunks, const Parallel& parallel) {
  for_each_chunk(chunks, parallel, [&](int64_t i) {
    const Chunk& chunk = chunks.chunks[i];
    const StepItem& item = step.items[chunk.item];
    with_type(item.dtype, [&](auto type) { adamw<decltype(type)>(step, item, chunk, streams(chunks, item)); });
  });
}

}  // namespace vtk::VTK_ISA
