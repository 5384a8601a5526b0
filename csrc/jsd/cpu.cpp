// Consistency and AugMix loss for one instruction set. Everything about a sample happens while its logits are in the first-level
// cache: softmax of each view, mixture, loss, and the gradient, which is written once.
//
// With x = z - max, and L = ln sum exp x: ln p = x - L. With s = ln(mixture), less 1 where the floor holds it:
//   d = ln p - s,   A = sum p d,   d loss / d z = weight * w * p * (d - A)
#include "jsd/kernel.h"

#include "common/scratch.h"
#include "common/simd.h"

namespace vtk::VTK_ISA {
namespace {

constexpr float kFloor = 1e-7f;
// exp of anything below is 0: so it can stay finite, and 0 times it is 0
constexpr float kLowest = -105.0f;
// up to here a vector holds one class of W samples, beyond it W classes of one sample
constexpr int64_t kFewClasses = 64;
// a gradient beyond the caches is written past them: reading a line only to overwrite it would be half as much traffic again
constexpr int64_t kStreamFromBytes = 8 << 20;
// below this a second thread costs more than it brings
constexpr int64_t kElementsPerThread = 16 << 10;

VTK_INLINE V add_across(V v) {
#if defined(__AVX512F__)
  return set1(_mm512_reduce_add_ps(v));
#else
  return set1(sum(v));
#endif
}
VTK_INLINE V largest_across(V v) {
#if defined(__AVX512F__)
  return set1(_mm512_reduce_max_ps(v));
#else
  return set1(largest(v));
#endif
}
// v where `condition`, else 0
VTK_INLINE V only_where_below(V v, V x, float limit) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set1(limit), _CMP_LT_OQ), v);
#else
  return (V)((I)v & (I)(x < limit));
#endif
}
VTK_INLINE V only_where_not_zero(V v, V x) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, zero(), _CMP_NEQ_UQ), v);
#else
  return (V)((I)v & (I)(x != 0.0f));
#endif
}
VTK_INLINE V only_where_equal(V v, I a, I b) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(_mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b), v);
#else
  return (V)((I)v & (I)(a == b));
#endif
}
// `count` numbers of a row, `other` beyond them
template <class T>
VTK_INLINE V load_padded(const T* p, int count, float other) {
  V v = load_row(p, count);
#if defined(__AVX512F__)
  v = _mm512_mask_mov_ps(set1(other), first(count), v);
#else
  alignas(64) float lanes[W];
  store(lanes, v);
  for (int i = count; i < W; ++i) lanes[i] = other;
  v = load(lanes);
#endif
  return v;
}

// Of one view. Lanes are all alike, or each is a sample's.
struct Statistics {
  V max, log_sum, inverse;  // of exp x: the logarithm of the sum, and its inverse
  V a;                      // A
};

// Working memory for one sample, or for W side by side: vectors of the views' x and exp x, of s, and of soft targets.
struct Tile {
  Statistics* statistics;
  float *x, *e, *s, *target;
  int64_t vectors;

  Tile(const Jsd& call, int64_t vectors, bool keeps_target) : vectors(vectors) {
    const int64_t size = vectors * W, views = call.views;
    statistics = (Statistics*)thread_scratch((size_t)views * sizeof(Statistics) + (size_t)((2 * views + 1 + keeps_target) * size + W) * sizeof(float));
    x = (float*)(statistics + views);
    e = x + views * size;
    s = e + views * size;
    target = s + size;
  }
  inline __attribute__((always_inline)) float* x_of(int view) const { return x + view * vectors * W; }
  inline __attribute__((always_inline)) float* e_of(int view) const { return e + view * vectors * W; }
};

// What crosses lanes: everything where they are classes of one sample, nothing where each is a sample.
struct OneSample {
  VTK_INLINE V total(V v) { return add_across(v); }
  VTK_INLINE V greatest(V v) { return largest_across(v); }
};
struct SideBySide {
  VTK_INLINE V total(V v) { return v; }
  VTK_INLINE V greatest(V v) { return v; }
};

// values(i): the i-th vector of a view's logits, -inf beyond the last class
template <class Lanes, class Values>
VTK_INLINE V greatest(int64_t vectors, Values values) {
  V first = values(0), second = first;
  int64_t i = 1;
  for (; i + 2 <= vectors; i += 2) {
    first = larger(first, values(i));
    second = larger(second, values(i + 1));
  }
  if (i < vectors) first = larger(first, values(i));
  return Lanes::greatest(larger(first, second));
}

// f(begin, end) for stretches of the vectors: a sum of one number after the other over tens of thousands of classes would lose digits
template <class F>
VTK_INLINE void for_each_stretch(int64_t vectors, F f) {
  constexpr int64_t kStretch = 64;
  for (int64_t i = 0; i < vectors; i += kStretch) f(i, i + kStretch < vectors ? i + kStretch : vectors);
}

// `next`, what will be read after this, is fetched meanwhile: a line with each vector, `line` bytes apart
template <class Lanes, class Values>
VTK_INLINE void softmax(const Tile& tile, int view, Values values, Statistics& of, const char* next = nullptr, int line = 0) {
  float *x = tile.x_of(view), *e = tile.e_of(view);
  V total = zero();
  auto one = [&](int64_t i, V& sum) __attribute__((always_inline)) {
    const V shifted = larger(set1(kLowest), values(i) - of.max), power = exp(shifted);
    if (line) __builtin_prefetch(next + i * line, 0, 2);
    store(x + i * W, shifted);
    store(e + i * W, power);
    sum = sum + power;
  };
  for_each_stretch(tile.vectors, [&](int64_t i, int64_t end) __attribute__((always_inline)) {
    V sums[2] = {zero(), zero()};
    for (; i + 2 <= end; i += 2) {
      one(i, sums[0]);
      one(i + 1, sums[1]);
    }
    if (i < end) one(i, sums[0]);
    total = total + (sums[0] + sums[1]);
  });
  const V sum = Lanes::total(total);
  of.log_sum = log(sum);
  of.inverse = 1.0f / sum;
}

// ln(mixture), less 1 where it is floored; what is floored is added up
VTK_INLINE V log_mixture(V mixture, V& floored) {
  floored = floored + only_where_below(mixture, mixture, kFloor);
  return log(larger(set1(kFloor), mixture)) - only_where_below(set1(1.0f), mixture, kFloor);
}

// s of all classes and A of all views; returns the sum over views of w KL. NV is the number of views, or 0 for any.
template <class Lanes, int NV>
VTK_INLINE V divergence(const Jsd& call, const Tile& tile, Statistics* of) {
  V floored = zero(), loss = zero();
  if constexpr (NV > 0) {
    V factors[NV], log_sums[NV], sums[NV];
    VTK_UNROLL for (int v = 0; v < NV; ++v) {
      factors[v] = of[v].inverse * call.view_weights[v];
      log_sums[v] = of[v].log_sum;
      sums[v] = zero();
    }
    for_each_stretch(tile.vectors, [&](int64_t i, int64_t end) __attribute__((always_inline)) {
      V parts[NV];
      VTK_UNROLL for (int v = 0; v < NV; ++v) parts[v] = zero();
      for (; i < end; ++i) {
        V e[NV], mixture = zero();
        VTK_UNROLL for (int v = 0; v < NV; ++v) {
          e[v] = load(tile.e_of(v) + i * W);
          mixture = fma(e[v], factors[v], mixture);
        }
        const V s = log_mixture(mixture, floored);
        store(tile.s + i * W, s);
        VTK_UNROLL for (int v = 0; v < NV; ++v) parts[v] = fma(e[v], (load(tile.x_of(v) + i * W) - s) - log_sums[v], parts[v]);
      }
      VTK_UNROLL for (int v = 0; v < NV; ++v) sums[v] = sums[v] + parts[v];
    });
    VTK_UNROLL for (int v = 0; v < NV; ++v) of[v].a = Lanes::total(sums[v]) * of[v].inverse;
  } else {
    for (int64_t i = 0; i < tile.vectors; ++i) {
      V mixture = zero();
      for (int v = 0; v < call.views; ++v) mixture = fma(load(tile.e_of(v) + i * W), of[v].inverse * call.view_weights[v], mixture);
      store(tile.s + i * W, log_mixture(mixture, floored));
    }
    for (int v = 0; v < call.views; ++v) {
      const float *x = tile.x_of(v), *e = tile.e_of(v);
      V sum = zero();
      for_each_stretch(tile.vectors, [&](int64_t i, int64_t end) __attribute__((always_inline)) {
        V part = zero();
        for (; i < end; ++i) part = fma(load(e + i * W), (load(x + i * W) - load(tile.s + i * W)) - of[v].log_sum, part);
        sum = sum + part;
      });
      of[v].a = Lanes::total(sum) * of[v].inverse;
    }
  }
  for (int v = 0; v < call.views; ++v) loss = loss + of[v].a * call.view_weights[v];
  // where the floor holds the mixture, A counts 1 too much
  return loss - Lanes::total(floored);
}

// The cross-entropy is of_log_sum * L - inner, with the smoothed target's sum and its product with x.
struct CrossEntropy {
  V of_log_sum, inner;
};

// All but a hard target's own term. values(i) are 0 after subtracting max beyond the last class, soft(i) are 0 there. x is not
// clamped: the cross-entropy sees all of it.
template <class Lanes, class Values, class Soft>
VTK_INLINE CrossEntropy cross_entropy(const Jsd& call, int64_t vectors, Values values, V max, Soft soft) {
  V all = zero(), weights = zero(), weighted = zero();
  const float certain = 1.0f - call.label_smoothing;
  if (call.soft_target) {
    for (int64_t i = 0; i < vectors; ++i) {
      const V target = soft(i);
      weights = weights + target;
      // 0 * ln 0 is 0
      weighted = weighted + only_where_not_zero(target * (values(i) - max), target);
    }
    weights = Lanes::total(weights) * certain + call.label_smoothing;
    weighted = Lanes::total(weighted) * certain;
  } else {
    weights = set1(1.0f);
  }
  if (call.label_smoothing > 0.0f) {
    for (int64_t i = 0; i < vectors; ++i) all = all + (values(i) - max);
    weighted = weighted + Lanes::total(all) * (call.label_smoothing / (float)call.classes);
  }
  return {weights, weighted};
}

// The gradient of one view by logits at offset `c` of the tile; `grad` is what the sample's gradient is multiplied by.
struct ConsistencyGradient {
  const float *x, *e, *s;
  V factor, middle;

  inline __attribute__((always_inline)) ConsistencyGradient(const Jsd& call, const Tile& tile, int view, const Statistics& of, V grad)
      : x(tile.x_of(view)), e(tile.e_of(view)), s(tile.s) {
    factor = of.inverse * (grad * (call.weight * call.view_weights[view]));
    middle = of.log_sum + of.a;
  }
  inline __attribute__((always_inline)) V operator()(int64_t c) const { return load(e + c) * (factor * ((load(x + c) - load(s + c)) - middle)); }
};

// The same of the clean view, with the cross-entropy's. `target` are the smoothed targets of these logits, times `grad`.
struct WholeGradient : ConsistencyGradient {
  V own;

  inline __attribute__((always_inline)) WholeGradient(const Jsd& call, const Tile& tile, const Statistics& of, V grad, V of_log_sum)
      : ConsistencyGradient(call, tile, 0, of, grad), own(of.inverse * (grad * of_log_sum)) {}
  inline __attribute__((always_inline)) V operator()(int64_t c, V target) const {
    return load(e + c) * fma(factor, (load(x + c) - load(s + c)) - middle, own) - target;
  }
};

template <class T>
VTK_INLINE const T* row_of(const Jsd& call, int view, int64_t sample) {
  return (const T*)call.logits + (view * call.batch + sample) * call.row_stride;
}
VTK_INLINE float grad_of(const Jsd& call, int64_t sample) { return call.share * (call.grad_loss ? call.grad_loss[sample * call.grad_stride] : 1.0f); }

// A row of `classes` numbers as vectors, what is beyond them `beyond`.
template <class T>
struct Row {
  const T* p;
  int64_t whole;
  V tail;
  Row(const T* p, int64_t classes, float beyond) : p(p), whole(classes / W) {
    if (classes % W) tail = load_padded(p + whole * W, (int)(classes % W), beyond);
  }
  inline __attribute__((always_inline)) V operator()(int64_t i) const { return i < whole ? load_row(p + i * W, W) : tail; }
};

// values(c, count) to each column of a row; past the caches if `stream`, from the first column on that is aligned to a vector
template <class T, class Values>
VTK_INLINE void write_row(T* to, int64_t classes, bool stream, Values values) {
  int64_t c = 0;
  if (stream) {
    const int64_t beyond = ((uintptr_t)to / sizeof(T)) % W;
    if (beyond) {
      c = W - beyond;
      store_row(to, values(0, (int)c), (int)c);
    }
    for (; c + W <= classes; c += W) stream_row(to + c, values(c, W));
  } else {
    for (; c + W <= classes; c += W) store_row(to + c, values(c, W), W);
  }
  if (c < classes) store_row(to + c, values(c, (int)(classes - c)), (int)(classes - c));
}

template <class T, int NV>
void one_sample(const Jsd& call, const Tile& tile, int64_t sample, bool stream) {
  Statistics* of = tile.statistics;
  const int views = NV ? NV : call.views;
  const int64_t classes = call.classes;
  CrossEntropy ce{};
  for (int v = 0; v < views; ++v) {
    const T* logits = row_of<T>(call, v, sample);
    const Row<T> values(logits, classes, -__builtin_inff());
    of[v].max = greatest<OneSample>(tile.vectors, values);
    if (v == 0 && (call.soft_target || call.classes_wanted)) {
      const Row<float> soft(call.soft_target + (call.soft_target ? sample * classes : 0), call.soft_target ? classes : 0, 0.0f);
      ce = cross_entropy<OneSample>(call, tile.vectors, Row<T>(logits, classes, of[0].max[0]), of[0].max, soft);
      if (call.classes_wanted) ce.inner = ce.inner + (to_float(logits[call.classes_wanted[sample]]) - of[0].max) * (1.0f - call.label_smoothing);
    }
    softmax<OneSample>(tile, v, values, of[v], (const char*)(logits + call.row_stride), W * (int)sizeof(T));
  }
  const V kl = divergence<OneSample, NV>(call, tile, of);
  if (call.losses) call.losses[sample] = (kl * call.weight + (ce.of_log_sum * of[0].log_sum - ce.inner))[0];
  if (!call.gradient) return;
  const V grad = set1(grad_of(call, sample)), even = grad * (call.label_smoothing / (float)classes), certain = grad * (1.0f - call.label_smoothing);
  for (int v = 0; v < views; ++v) {
    T* to = (T*)call.gradient + (v * call.batch + sample) * classes;
    if (v == 0 && call.classes_wanted) {
      I lane;
      for (int i = 0; i < W; ++i) lane[i] = i;
      const I wanted = set1i((int32_t)call.classes_wanted[sample]);
      const WholeGradient gradient(call, tile, of[0], grad, ce.of_log_sum);
      write_row(to, classes, stream,
                [&](int64_t c, int) __attribute__((always_inline)) { return gradient(c, even + only_where_equal(certain, lane + (int32_t)c, wanted)); });
    } else if (v == 0 && call.soft_target) {
      const float* soft = call.soft_target + sample * classes;
      const WholeGradient gradient(call, tile, of[0], grad, ce.of_log_sum);
      write_row(to, classes, stream,
                [&](int64_t c, int count) __attribute__((always_inline)) { return gradient(c, fma(certain, load_row(soft + c, count), even)); });
    } else {
      const ConsistencyGradient gradient(call, tile, v, of[v], grad);
      write_row(to, classes, stream, [&](int64_t c, int) __attribute__((always_inline)) { return gradient(c); });
    }
  }
}

// rows [count][classes] -> vectors of W samples, one for each class; samples beyond `count` are 0
template <class T>
VTK_INLINE void gather(const T* rows, int64_t stride, int count, int64_t classes, float* to) {
  for (int64_t c = 0; c < classes; c += W) {
    const int width = classes - c < W ? (int)(classes - c) : W;
    V block[W];
    VTK_UNROLL for (int i = 0; i < W; ++i) block[i] = i < count ? load_row(rows + i * stride + c, width) : zero();
    transpose(block);
    VTK_UNROLL for (int i = 0; i < W; ++i) if (i < width) store(to + (c + i) * W, block[i]);
  }
}
template <class T>
VTK_INLINE void scatter(const float* from, int64_t classes, T* rows, int count) {
  for (int64_t c = 0; c < classes; c += W) {
    const int width = classes - c < W ? (int)(classes - c) : W;
    V block[W];
    VTK_UNROLL for (int i = 0; i < W; ++i) block[i] = i < width ? load(from + (c + i) * W) : zero();
    transpose(block);
    VTK_UNROLL for (int i = 0; i < W; ++i) if (i < count) store_row(rows + i * classes + c, block[i], width);
  }
}

template <class T, int NV>
void side_by_side(const Jsd& call, const Tile& tile, int64_t first, int count) {
  Statistics* of = tile.statistics;
  const int views = NV ? NV : call.views;
  const int64_t classes = call.classes;
  alignas(64) float lanes[W] = {};
  alignas(64) int32_t wanted_lanes[W] = {};
  CrossEntropy ce{};
  for (int v = 0; v < views; ++v) {
    float* x = tile.x_of(v);
    gather(row_of<T>(call, v, first), call.row_stride, count, classes, x);
    auto values = [&](int64_t i) __attribute__((always_inline)) { return load(x + i * W); };
    of[v].max = greatest<SideBySide>(classes, values);
    if (v == 0 && (call.soft_target || call.classes_wanted)) {
      if (call.soft_target) gather(call.soft_target + first * classes, classes, count, classes, tile.target);
      auto soft = [&](int64_t i) __attribute__((always_inline)) { return load(tile.target + i * W); };
      ce = cross_entropy<SideBySide>(call, classes, values, of[0].max, soft);
      if (call.classes_wanted) {
        for (int i = 0; i < count; ++i) {
          wanted_lanes[i] = (int32_t)call.classes_wanted[first + i];
          lanes[i] = x[wanted_lanes[i] * W + i];
        }
        ce.inner = ce.inner + (load(lanes) - of[0].max) * (1.0f - call.label_smoothing);
      }
    }
    softmax<SideBySide>(tile, v, values, of[v]);
  }
  const V kl = divergence<SideBySide, NV>(call, tile, of);
  if (call.losses) store_row(call.losses + first, kl * call.weight + (ce.of_log_sum * of[0].log_sum - ce.inner), count);
  if (!call.gradient) return;
  for (int i = 0; i < count; ++i) lanes[i] = grad_of(call, first + i);
  const V grad = load(lanes), even = grad * (call.label_smoothing / (float)classes), certain = grad * (1.0f - call.label_smoothing);
  const I wanted = loadi(wanted_lanes);
  for (int v = 0; v < views; ++v) {
    float* x = tile.x_of(v);
    if (v == 0 && call.classes_wanted) {
      const WholeGradient gradient(call, tile, of[0], grad, ce.of_log_sum);
      for (int64_t i = 0; i < classes; ++i) store(x + i * W, gradient(i * W, even + only_where_equal(certain, set1i((int32_t)i), wanted)));
    } else if (v == 0 && call.soft_target) {
      const WholeGradient gradient(call, tile, of[0], grad, ce.of_log_sum);
      for (int64_t i = 0; i < classes; ++i) store(x + i * W, gradient(i * W, fma(certain, load(tile.target + i * W), even)));
    } else {
      const ConsistencyGradient gradient(call, tile, v, of[v], grad);
      for (int64_t i = 0; i < classes; ++i) store(x + i * W, gradient(i * W));
    }
    scatter(x, classes, (T*)call.gradient + (v * call.batch + first) * classes, count);
  }
}

template <class T, int NV>
void run(const Jsd& call, const Parallel& parallel) {
  const bool few = call.classes <= kFewClasses;
  const int64_t groups = few ? (call.batch + W - 1) / W : call.batch, enough = call.views * call.batch * call.classes / kElementsPerThread + 1;
  int64_t tasks = parallel.threads;
  if (tasks > enough) tasks = enough;
  if (tasks > groups) tasks = groups;
  const bool stream = call.gradient && W > 4 && call.views * call.batch * call.classes * (int64_t)sizeof(T) > kStreamFromBytes;
  // a sample's numbers do not depend on the task it is in
  auto task = [&](int64_t index) {
    const Tile tile(call, few ? call.classes : (call.classes + W - 1) / W, few && call.soft_target);
    for (int64_t group = groups * index / tasks; group < groups * (index + 1) / tasks; ++group) {
      if (few)
        side_by_side<T, NV>(call, tile, group * W, call.batch - group * W < W ? (int)(call.batch - group * W) : W);
      else
        one_sample<T, NV>(call, tile, group, stream);
    }
    if (stream) stream_fence();
  };
  parallel.for_each(tasks, task);
}

template <class T>
void run(const Jsd& call, const Parallel& parallel) {
  if (call.views == 2) return run<T, 2>(call, parallel);
  if (call.views == 3) return run<T, 3>(call, parallel);
  run<T, 0>(call, parallel);
}

}  // namespace

void jsd(const Jsd& call, const Parallel& parallel) {
  if (call.dtype == DType::kFloat32) return run<float>(call, parallel);
  if (call.dtype == DType::kBFloat16) return run<BFloat16>(call, parallel);
  run<Half>(call, parallel);
}

}  // namespace vtk::VTK_ISA
