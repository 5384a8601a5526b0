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

// step(i, count, store) for whole vectors, then for the rest; store(p, v, count) streams where all of `written` allow it
template <class T, class Step, class... Written>
VTK_INLINE void walk(int64_t size, bool stream, Step step, const Written*... written) {
  const int64_t whole = size / W * W;
  const bool aligned = ((reinterpret_cast<uintptr_t>(written) % (W * sizeof(T)) == 0) && ...);
  if (stream && aligned) {
    auto store = [](T* p, V v, int) __attribute__((always_inline)) { stream_row(p, v); };
    for (int64_t i = 0; i < whole; i += W) step(i, W, store);
    stream_fence();
  } else {
    auto store = [](T* p, V v, int) __attribute__((always_inline)) { store_row(p, v, W); };
    for (int64_t i = 0; i < whole; i += W) step(i, W, store);
  }
  auto store = [](T* p, V v, int count) __attribute__((always_inline)) { store_row(p, v, count); };
  if (whole < size) step(whole, (int)(size - whole), store);
}

typedef float HalfV __attribute__((vector_size(sizeof(V) / 2)));
typedef double D __attribute__((vector_size(sizeof(V))));

// In double: no gradient a float can hold overflows, and a sum of many keeps its digits.
struct SquareSum {
  D low{}, high{};
  VTK_INLINE void add(SquareSum& sum, V v) {
    HalfV halves[2];
    memcpy(halves, &v, sizeof(v));
    const D a = __builtin_convertvector(halves[0], D), b = __builtin_convertvector(halves[1], D);
    sum.low += a * a;
    sum.high += b * b;
  }
  double total() const {
    double s = 0.0;
    for (int i = 0; i < W / 2; ++i) s += low[i] + high[i];
    return s;
  }
};

VTK_INLINE V magnitude(V v) { return (V)((I)v & 0x7FFFFFFF); }

template <class T>
double square_sum(const SamItem& item, const Chunk& chunk, float eta) {
  const T *g = (const T*)item.grad + chunk.begin, *w = (const T*)item.param + chunk.begin;
  // several chains, as an addition takes longer than the loads before it
  SquareSum sums[4];
  const int64_t whole = chunk.size / W * W;
  int64_t i = 0;
  if (!item.adaptive) {
    for (; i + 4 * W <= whole; i += 4 * W) VTK_UNROLL for (int k = 0; k < 4; ++k) SquareSum::add(sums[k], load_row(g + i + k * W, W));
  }
  auto value = [&](int64_t at, int count) __attribute__((always_inline)) {
    const V v = load_row(g + at, count);
    return item.adaptive ? (magnitude(load_row(w + at, count)) + eta) * v : v;
  };
  for (; i < whole; i += W) SquareSum::add(sums[0], value(i, W));
  if (i < chunk.size) {
    // lanes past the end are 0 in both
    SquareSum::add(sums[0], value(i, (int)(chunk.size - i)));
  }
  return (sums[0].total() + sums[1].total()) + (sums[2].total() + sums[3].total());
}

template <class T>
void perturb(const SamItem& item, const Chunk& chunk, float eta, bool stream) {
  T *w = (T*)item.param + chunk.begin, *backup = (T*)item.backup + chunk.begin;
  const T* g = (const T*)item.grad + chunk.begin;
  const V factor = set1(item.factor);
  if (item.adaptive) {
    auto step = [&](int64_t i, int count, auto store) __attribute__((always_inline)) {
      const V old = load_row(w + i, count), t = magnitude(old) + eta;
      store(backup + i, old, count);
      store(w + i, fma(t * t * load_row(g + i, count), factor, old), count);
    };
    walk<T>(chunk.size, stream, step, w, backup);
  } else {
    auto step = [&](int64_t i, int count, auto store) __attribute__((always_inline)) {
      const V old = load_row(w + i, count);
      store(backup + i, old, count);
      store(w + i, fma(load_row(g + i, count), factor, old), count);
    };
    walk<T>(chunk.size, stream, step, w, backup);
  }
}

template <class T>
void sgd(const SgdStep& call, const StepItem& item, const Chunk& chunk, bool stream) {
  T *w = (T*)item.param + chunk.begin, *buffer = (T*)item.first + chunk.begin;
  const T *g = (const T*)item.grad + chunk.begin, *from = (const T*)item.backup + chunk.begin;
  const V grad_factor = set1(call.grad_factor), decay = set1(item.decay), weight_decay = set1(item.weight_decay), size = set1(-item.size),
          momentum = set1(call.momentum);
  if (!item.first) {
    auto step = [&](int64_t i, int count, auto store) __attribute__((always_inline)) {
      const V old = load_row(from + i, count), d = fma(load_row(g + i, count), grad_factor, weight_decay * old);
      store(w + i, fma(size, d, old * decay), count);
    };
    return walk<T>(chunk.size, stream, step, w);
  }
  auto step = [&](int64_t i, int count, auto store) __attribute__((always_inline)) {
    const V old = load_row(from + i, count), d = fma(load_row(g + i, count), grad_factor, weight_decay * old);
    const V b = fma(load_row(buffer + i, count), momentum, d);
    store(buffer + i, b, count);
    store(w + i, fma(size, call.nesterov ? fma(b, momentum, d) : b, old * decay), count);
  };
  walk<T>(chunk.size, stream, step, w, buffer);
}

template <class T>
void adamw(const AdamWStep& call, const StepItem& item, const Chunk& chunk, bool stream) {
  T *w = (T*)item.param + chunk.begin, *m = (T*)item.first + chunk.begin, *v = (T*)item.second + chunk.begin;
  const T *g = (const T*)item.grad + chunk.begin, *from = (const T*)item.backup + chunk.begin;
  const V grad_factor = set1(call.grad_factor), decay = set1(item.decay), weight_decay = set1(item.weight_decay), size = set1(-item.size),
          root = set1(item.root), eps = set1(call.eps), beta2 = set1(call.beta2), fresh1 = set1(1.0f - call.beta1), fresh2 = set1(1.0f - call.beta2);
  auto step = [&](int64_t i, int count, auto store) __attribute__((always_inline)) {
    const V old = load_row(from + i, count), d = fma(load_row(g + i, count), grad_factor, weight_decay * old);
    const V old_m = load_row(m + i, count), new_m = fma(fresh1, d - old_m, old_m);
    const V new_v = fma(beta2, load_row(v + i, count), fresh2 * d * d);
    store(m + i, new_m, count);
    store(v + i, new_v, count);
    store(w + i, fma(size, new_m / fma(square_root(new_v), root, eps), old * decay), count);
  };
  walk<T>(chunk.size, stream, step, w, m, v);
}

}  // namespace

void sam_square_sums(const SamItem* items, float eta, const Chunks& chunks, double* sums, const Parallel& parallel) {
  auto run = [&](int64_t task) {
    const Chunk& chunk = chunks.chunks[task];
    const SamItem& item = items[chunk.item];
    sums[task] = with_type(item.dtype, [&](auto type) { return square_sum<decltype(type)>(item, chunk, eta); });
  };
  parallel.for_each(chunks.count, run);
}

void sam_perturb(const SamItem* items, float eta, const Chunks& chunks, const Parallel& parallel) {
  auto run = [&](int64_t task) {
    const Chunk& chunk = chunks.chunks[task];
    const SamItem& item = items[chunk.item];
    with_type(item.dtype, [&](auto type) { perturb<decltype(type)>(item, chunk, eta, chunks.stream); });
  };
  parallel.for_each(chunks.count, run);
}

void sgd_step(const SgdStep& step, const Chunks& chunks, const Parallel& parallel) {
  auto run = [&](int64_t task) {
    const Chunk& chunk = chunks.chunks[task];
    const StepItem& item = step.items[chunk.item];
    with_type(item.dtype, [&](auto type) { sgd<decltype(type)>(step, item, chunk, chunks.stream); });
  };
  parallel.for_each(chunks.count, run);
}

void adamw_step(const AdamWStep& step, const Chunks& chunks, const Parallel& parallel) {
  auto run = [&](int64_t task) {
    const Chunk& chunk = chunks.chunks[task];
    const StepItem& item = step.items[chunk.item];
    with_type(item.dtype, [&](auto type) { adamw<decltype(type)>(step, item, chunk, chunks.stream); });
  };
  parallel.for_each(chunks.count, run);
}

}  // namespace vtk::VTK_ISA
