// Window attention for one instruction set: the walk over images, windows and heads, and its division among threads.
#include "window_attention/backward.h"

#include <memory>

namespace vtk::VTK_ISA {
namespace {

// Heads that go through a window together: their slices of a token's row lie side by side in memory, but what they read
// of this window and the next, and their biases, must stay in the second-level cache.
constexpr int64_t kBytesTogether = 160 << 10;
// Results beyond the caches are written past them: reading a line only to overwrite it costs a third of the traffic.
constexpr int64_t kStreamFromBytes = 8 << 20;

VTK_INLINE int64_t greatest_common_divisor(int64_t a, int64_t b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

// Tasks: groups of heads times ranges of windows, fixed by the shape and the number of threads.
struct Plan {
  int64_t items;  // windows of all images
  int heads_together, groups, ranges;

  Plan(const WindowAttention& call, int64_t windows, int threads, int64_t bytes_per_head) : items(call.batch * windows), heads_together(call.heads) {
    auto unfit = [&] { return heads_together * bytes_per_head > kBytesTogether || call.heads / heads_together * items < threads; };
    while (heads_together > 1 && (call.heads % heads_together || unfit())) --heads_together;
    groups = call.heads / heads_together;
    const int64_t wanted = threads / greatest_common_divisor(groups, threads);
    ranges = (int)(wanted < items ? wanted : items);
  }
  int64_t tasks() const { return (int64_t)groups * ranges; }
};

// The sums over all windows that a task leaves behind, added up in the order of tasks: the result does not depend on
// which thread was faster.
struct PartialSums {
  int64_t bias, total;  // floats of one head: its table or dense bias; with logit scale and padding
  int dim;

  PartialSums(const WindowAttention& call, int tokens) : dim(call.head_dim) {
    bias = call.d_bias_table ? (2 * call.window_h - 1) * (2 * call.window_w - 1) : call.d_bias ? (int64_t)tokens * tokens : 0;
    total = bias + 1 + 3 * dim;
  }
};

template <class T>
struct Task {
  const WindowAttention& call;
  const Plan& plan;
  int first_head;
  int64_t begin, end;  // windows

  Task(const WindowAttention& call, const Plan& plan, int64_t index) : call(call), plan(plan) {
    first_head = (int)(index / plan.ranges) * plan.heads_together;
    const int64_t range = index % plan.ranges;
    begin = plan.items * range / plan.ranges;
    end = plan.items * (range + 1) / plan.ranges;
  }

  // visit(head within the group, window, its index, prefetch) for each window and head of the task
  template <bool GRAD, class Visit>
  inline __attribute__((always_inline)) void walk(const Axis& y_axis, const Axis& x_axis, Window windows[2], int tokens, Visit visit) const {
    const int64_t channels = (int64_t)call.heads * call.head_dim, first = (int64_t)first_head * call.head_dim,
                  together = (int64_t)plan.heads_together * call.head_dim;
    // a row of all heads is one slice
    const int slices = plan.groups == 1 ? 1 : 3;
    const int64_t slice_elements = plan.groups == 1 ? 3 * channels : together;
    struct {
      Prefetcher<T> qkv, grad;
      inline __attribute__((always_inline)) void step(int units) {
        qkv.step(units);
        if (GRAD) grad.step(units);
      }
    } prefetch;
    if (begin < end) locate(call, y_axis, x_axis, begin, windows[0]);
    for (int64_t index = begin; index < end; ++index) {
      const Window& window = windows[(index - begin) % 2];
      Window& next = windows[(index - begin + 1) % 2];
      if (index + 1 < end) {
        locate(call, y_axis, x_axis, index + 1, next);
        prefetch.qkv.start((const T*)call.qkv + first, next.qkv, tokens, slices, channels, slice_elements, plan.heads_together);
        if (GRAD) prefetch.grad.start((const T*)call.grad_out + first, next.grad, tokens, 1, channels, together, plan.heads_together);
      }
      for (int head = 0; head < plan.heads_together; ++head) visit(head, window, index, prefetch);
    }
    stream_fence();
  }
};

// What a padded token reads: the projection's bias (in qkv's type), or zeros.
template <class T>
VTK_INLINE T* padding_row(Carver& carver, const WindowAttention& call) {
  const int64_t size = 3 * (int64_t)call.heads * call.head_dim;
  T* row = carver.take<T>(size + W);
  if (carver.memory)
    for (int64_t i = 0; i < size; ++i) row[i] = from_float<T>(call.qkv_bias ? call.qkv_bias[i] : 0.0f);
  return row;
}

template <class T>
VTK_INLINE bool stream_results(const WindowAttention& call, const void* result, int64_t channels_moved) {
  const int64_t bytes = call.batch * call.height * call.width * call.heads * call.head_dim * channels_moved * (int64_t)sizeof(T);
  return W > 4 && bytes > kStreamFromBytes && call.head_dim * sizeof(T) % 64 == 0 && (uintptr_t)result % 64 == 0;
}

template <class M, class T>
void forward(const WindowAttention& call, const Parallel& parallel) {
  const Shape<M> shape(call);
  const int64_t windows = ((call.height + call.window_h - 1) / call.window_h) * ((call.width + call.window_w - 1) / call.window_w);
  const Plan plan(call, windows, parallel.threads, (int64_t)shape.tokens * call.head_dim * 3 * sizeof(T));
  const int64_t channels = (int64_t)call.heads * call.head_dim;
  const bool stream = stream_results<T>(call, call.out, 4);
  auto run = [&](int64_t index) {
    const Task<T> task(call, plan, index);
    with_scratch([&](Carver& carver) __attribute__((always_inline)) {
      const Axis y_axis = make_axis(carver, call.height, call.window_h, call.shift_h, call.shift_first),
                 x_axis = make_axis(carver, call.width, call.window_w, call.shift_w, call.shift_first);
      Window two_windows[2] = {make_window(carver, shape.tokens), make_window(carver, shape.tokens)};
      const T* padding = padding_row<T>(carver, call);
      const int64_t lone_at = (int64_t)shape.tokens * shape.columns + W, bias_size = lone_at + shape.a_rows();
      float* bias = carver.take<float>(bias_size * plan.heads_together);
      const FlippedTable table(call, carver);
      Forward<M, T> one(call, shape, carver);
      if (!carver.memory) return;
      for (int h = 0; h < plan.heads_together; ++h) expand_bias(call, shape, task.first_head + h, table, bias + bias_size * h, bias + bias_size * h + lone_at);
      task.template walk<false>(y_axis, x_axis, two_windows, shape.tokens,
                                [&](int h, const Window& window, int64_t w, auto& prefetch) __attribute__((always_inline)) {
        const int head = task.first_head + h;
        const int64_t slice = (int64_t)head * call.head_dim, item = w * call.heads + head;
        const T* q = (const T*)call.qkv + slice;
        const Rows<T> rows[3] = {{q, window.qkv, padding + slice},
                                 {q + channels, window.qkv, padding + channels + slice},
                                 {q + 2 * channels, window.qkv, padding + 2 * channels + slice}};
        const Destination<T> out{(T*)call.out + slice, window.pixel, channels, shape.dim, stream, nullptr, nullptr, 0};
        float* statistics = call.statistics ? call.statistics + item * shape.tokens : nullptr;
        const float* head_bias = bias + bias_size * h;
        one.run(head, window, rows, head_bias, head_bias + lone_at, (uint64_t)item, out, statistics, plan.items * call.heads * shape.tokens, prefetch);
      });
    });
  };
  parallel.for_each(plan.tasks(), run);
}

template <class M, class T>
void backward_tasks(const WindowAttention& call, const Parallel& parallel, const Plan& plan, const PartialSums& sums, float* partial) {
  const Shape<M> shape(call);
  const int64_t channels = (int64_t)call.heads * call.head_dim;
  const bool stream = stream_results<T>(call, call.d_qkv, 7);
  auto run = [&](int64_t index) {
    const Task<T> task(call, plan, index);
    float* mine = partial + index * plan.heads_together * sums.total;
    with_scratch([&](Carver& carver) __attribute__((always_inline)) {
      const Axis y_axis = make_axis(carver, call.height, call.window_h, call.shift_h, call.shift_first),
                 x_axis = make_axis(carver, call.width, call.window_w, call.shift_w, call.shift_first);
      Window two_windows[2] = {make_window(carver, shape.tokens), make_window(carver, shape.tokens)};
      const T* padding = padding_row<T>(carver, call);
      T* no_gradient = carver.take<T>(shape.dim + W);
      const int64_t lone_at = (int64_t)shape.tokens * shape.columns + W, bias_size = lone_at + shape.a_rows();
      float* bias = carver.take<float>(bias_size * plan.heads_together);
      const FlippedTable table(call, carver);
      float* d_bias = carver.take<float>(sums.bias ? bias_size * plan.heads_together : 0);
      Backward<M, T> one(call, shape, carver);
      if (!carver.memory) return;
      memset(no_gradient, 0, (shape.dim + W) * sizeof(T));
      if (sums.bias) memset(d_bias, 0, bias_size * plan.heads_together * sizeof(float));
      memset(mine, 0, plan.heads_together * sums.total * sizeof(float));
      for (int h = 0; h < plan.heads_together; ++h) expand_bias(call, shape, task.first_head + h, table, bias + bias_size * h, bias + bias_size * h + lone_at);
      task.template walk<true>(y_axis, x_axis, two_windows, shape.tokens,
                               [&](int h, const Window& window, int64_t w, auto& prefetch) __attribute__((always_inline)) {
        const int head = task.first_head + h;
        const int64_t slice = (int64_t)head * call.head_dim;
        const T* q = (const T*)call.qkv + slice;
        T* d_q = (T*)call.d_qkv + slice;
        float* own = mine + h * sums.total + sums.bias;
        float* padded = call.d_qkv_bias ? own + 1 : nullptr;
        const Rows<T> rows[3] = {{q, window.qkv, padding + slice},
                                 {q + channels, window.qkv, padding + channels + slice},
                                 {q + 2 * channels, window.qkv, padding + 2 * channels + slice}};
        const Rows<T> grad{(const T*)call.grad_out + slice, window.grad, no_gradient};
        const Destination<T> to[3] = {
            {d_q, window.pixel, 3 * channels, shape.dim, stream, nullptr, nullptr, 0},
            {d_q + channels, window.pixel, 3 * channels, shape.dim, stream, padded ? padded + shape.dim : nullptr, nullptr, 0},
            {d_q + 2 * channels, window.pixel, 3 * channels, shape.dim, stream, padded ? padded + 2 * shape.dim : nullptr, nullptr, 0}};
        const float* head_bias = bias + bias_size * h;
        float* head_d_bias = sums.bias ? d_bias + bias_size * h : nullptr;
        one.run(head, window, rows, grad, head_bias, head_bias + lone_at, (uint64_t)(w * call.heads + head), to, head_d_bias,
                head_d_bias ? head_d_bias + lone_at : nullptr, own, prefetch);
      });
      if (sums.bias)
        for (int h = 0; h < plan.heads_together; ++h)
          reduce_bias(call, shape, table, d_bias + bias_size * h, d_bias + bias_size * h + lone_at, mine + h * sums.total);
    });
  };
  parallel.for_each(plan.tasks(), run);
}

// Add the ranges of one head in their order and put the sums where they belong.
void collect(const WindowAttention& call, const Plan& plan, const PartialSums& sums, const float* partial, int head) {
  const int group = head / plan.heads_together, within = head % plan.heads_together;
  const int64_t next_range = plan.heads_together * sums.total;
  const float* first = partial + (int64_t)group * plan.ranges * next_range + within * sums.total;
  auto total = [&](int64_t i) __attribute__((always_inline)) {
    float sum = 0.0f;
    for (int r = 0; r < plan.ranges; ++r) sum += first[r * next_range + i];
    return sum;
  };
  if (call.d_bias_table)
    for (int64_t i = 0; i < sums.bias; ++i) call.d_bias_table[i * call.heads + head] = total(i);
  else if (call.d_bias)
    for (int64_t i = 0; i < sums.bias; ++i) call.d_bias[head * sums.bias + i] = total(i);
  if (call.d_logit_scale) call.d_logit_scale[head] = total(sums.bias);
  if (call.d_qkv_bias)
    for (int part = 0; part < 3; ++part)
      for (int c = 0; c < sums.dim; ++c) call.d_qkv_bias[((int64_t)part * call.heads + head) * sums.dim + c] = total(sums.bias + 1 + part * sums.dim + c);
}

template <class M, class T>
void backward(const WindowAttention& call, const Parallel& parallel) {
  const int64_t windows = ((call.height + call.window_h - 1) / call.window_h) * ((call.width + call.window_w - 1) / call.window_w);
  const Plan plan(call, windows, parallel.threads, (int64_t)call.window_h * call.window_w * call.head_dim * 4 * sizeof(T));
  const PartialSums sums(call, call.window_h * call.window_w);
  const std::unique_ptr<float[]> partial(new float[(size_t)(plan.tasks() * plan.heads_together * sums.total)]);
  backward_tasks<M, T>(call, parallel, plan, sums, partial.get());
  auto run = [&](int64_t head) { collect(call, plan, sums, partial.get(), (int)head); };
  parallel.for_each(call.heads, run);
}

// Pairs of bf16 are for plain attention; normalising rows or dropping single elements wants floats.
VTK_INLINE bool pairs_serve(const WindowAttention& call) { return call.logit_scale == nullptr && call.dropout_p == 0.0; }

}  // namespace

void window_attention_forward(const WindowAttention& call, const Parallel& parallel) {
#if defined(__AVX512BF16__)
  if (call.dtype == DType::kBFloat16 && pairs_serve(call)) return forward<BFloat16Pairs, BFloat16>(call, parallel);
#endif
  if (call.dtype == DType::kFloat32) return forward<Float32, float>(call, parallel);
  if (call.dtype == DType::kBFloat16) return forward<Float32, BFloat16>(call, parallel);
  forward<Float32, Half>(call, parallel);
}

void window_attention_backward(const WindowAttention& call, const Parallel& parallel) {
#if defined(__AVX512BF16__)
  if (call.dtype == DType::kBFloat16 && pairs_serve(call)) return backward<BFloat16Pairs, BFloat16>(call, parallel);
#endif
  if (call.dtype == DType::kFloat32) return backward<Float32, float>(call, parallel);
  if (call.dtype == DType::kBFloat16) return backward<Float32, BFloat16>(call, parallel);
  backward<Float32, Half>(call, parallel);
}

}  // namespace vtk::VTK_ISA
