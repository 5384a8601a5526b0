// Talking-heads attention for one instruction set: the walk over images and blocks of queries, and its division among threads.
#include <memory>

#include "common/carver.h"
#include "talking_heads_attention/rows.h"

namespace vtk::VTK_ISA {
namespace {

VTK_INLINE int greatest_common_divisor(int a, int b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

// Tasks: images, or shares of an image's queries where images are too few to keep the threads equally busy.
struct Plan {
  int parts;
  int64_t tasks;

  Plan(const TalkingHeads& call, const Shape& shape, int threads) {
    const bool enough = call.batch >= 8 * (int64_t)threads || call.batch == 0;
    parts = enough ? 1 : threads / greatest_common_divisor((int)call.batch, threads);
    const int blocks = divide_up(shape.tokens, shape.block_rows);
    if (parts > blocks) parts = blocks;
    tasks = call.batch * parts;
  }
};

template <class T>
struct Image {
  const T *q, *k, *v, *grad;
  int64_t stride, grad_stride;

  Image(const TalkingHeads& call, int64_t index) : stride(call.qkv_stride[1]), grad_stride(call.grad_stride[1]) {
    const int64_t channels = (int64_t)call.heads * call.head_dim;
    q = (const T*)call.qkv + index * call.qkv_stride[0];
    k = q + channels;
    v = k + channels;
    grad = (const T*)call.grad_out + index * call.grad_stride[0];
  }
};

VTK_INLINE Mixing make_mixing(Carver& carver, const TalkingHeads& call) {
  const int heads = call.heads;
  float* memory[5];
  for (float*& piece : memory) piece = carver.take<float>((size_t)heads * heads + W);
  if (carver.memory) {
    for (int f = 0; f < heads; ++f)
      for (int g = 0; g < heads; ++g) {
        memory[0][f * heads + g] = memory[1][g * heads + f] = call.scale * call.pre_weight[f * heads + g];
        memory[2][f * heads + g] = memory[3][g * heads + f] = call.post_weight[f * heads + g];
      }
    for (int f = 0; f < heads; ++f) memory[4][f] = call.post_bias ? call.post_bias[f] : 0.0f;
  }
  return {memory[0], memory[1], memory[2], memory[3], memory[4]};
}

VTK_INLINE RowBuffers make_row_buffers(Carver& carver, const TalkingHeads& call, const Shape& shape, bool backward) {
  const size_t rows = (size_t)shape.heads * shape.ld, heads = round_up(shape.heads, 8);
  RowBuffers buffers;
  buffers.e = carver.take<float>(rows);
  buffers.x = carver.take<float>(backward ? rows : 0);
  buffers.keep = carver.take<float>(call.dropout_p > 0.0 ? rows : 0);
  buffers.inverse = carver.take<float>(heads + W);
  buffers.delta = carver.take<float>(heads);
  buffers.folded = carver.take<float>((size_t)shape.heads * shape.heads + W);
  buffers.sums = carver.take<V>(heads);
  if (carver.memory) memset(buffers.sums, 0, heads * sizeof(V));
  return buffers;
}

// block(first query, how many) for the queries of a share
template <class Block>
VTK_INLINE void for_blocks(const Shape& shape, int parts, int part, Block block) {
  const int end = (int)((int64_t)shape.tokens * (part + 1) / parts);
  for (int query = (int)((int64_t)shape.tokens * part / parts), count; query < end; query += count) {
    count = balanced(end - query, shape.block_rows);
    block(query, count);
  }
}

// rows of queries [heads][count][dim_ld] times keys [heads][dim][ld] -> [heads][block_rows][ld]
VTK_INLINE void all_scores(const Shape& shape, const float* rows, int count, const float* keys, float* scores) {
  for (int h = 0; h < shape.heads; ++h)
    product<float>({rows + (int64_t)h * count * shape.dim_ld, shape.dim_ld, 1, keys + (int64_t)h * shape.dim * shape.ld, shape.ld, shape.dim}, count,
                   shape.vectors * W, {scores + h * shape.head_scores(), shape.ld, nullptr, 0});
}

template <class T>
void forward(const TalkingHeads& call, const Parallel& parallel) {
  const Shape shape(call);
  const Plan plan(call, shape, parallel.threads);
  const int64_t channels = (int64_t)shape.heads * shape.dim, head_rows = (int64_t)shape.tokens * shape.dim_ld;
  auto run = [&](int64_t task) {
    const int64_t index = task / plan.parts;
    const Image<T> image(call, index);
    with_scratch([&](Carver& carver) __attribute__((always_inline)) {
      const Mixing mixing = make_mixing(carver, call);
      const RowBuffers buffers = make_row_buffers(carver, call, shape, false);
      float* keys = carver.take<float>(channels * shape.ld);
      float* values = carver.take<float>(shape.heads * head_rows);
      float* queries = carver.take<float>((size_t)shape.heads * shape.block_rows * shape.dim_ld);
      float* scores = carver.take<float>(shape.heads * shape.head_scores());
      if (!carver.memory) return;
      pack_transposed(image.k, image.stride, shape.tokens, (int)channels, keys, shape.ld);
      pack_heads(image.v, image.stride, shape.tokens, shape.heads, shape.dim, values, shape.dim_ld);
      T* out = (T*)call.out + index * shape.tokens * channels;
      for_blocks(shape, plan.parts, (int)(task % plan.parts), [&](int query, int count) __attribute__((always_inline)) {
        pack_heads(image.q + query * image.stride, image.stride, count, shape.heads, shape.dim, queries, shape.dim_ld);
        all_scores(shape, queries, count, keys, scores);
        const Rows rows{call, shape, mixing, buffers, index, query, count};
        with_constant<kMostOutputs>(shape.group, [&](auto r) __attribute__((always_inline)) { forward_rows<decltype(r)::value>(rows, scores); });
        for (int h = 0; h < shape.heads; ++h)
          product<T>({scores + h * shape.head_scores(), shape.ld, 1, values + h * head_rows, shape.dim_ld, shape.tokens}, count, shape.dim,
                     {out + query * channels + h * shape.dim, channels, nullptr, 0});
      });
    });
  };
  parallel.for_each(plan.tasks, run);
}

// What tasks leave behind to be added up in their order: gradients of the parameters, and of k and v where an image has several tasks.
struct Partial {
  int64_t weights;  // doubles of a task: [heads][heads] twice, [heads]
  int64_t rows;     // floats of a task: k's and v's gradients, [2][heads][tokens][dim_ld]
  std::unique_ptr<double[]> sums;
  std::unique_ptr<float[]> d_kv;

  Partial(const Shape& shape, const Plan& plan)
      : weights((2 * shape.heads + 1) * (int64_t)shape.heads),
        rows(2 * (int64_t)shape.heads * shape.tokens * shape.dim_ld),
        sums(new double[(size_t)(weights * plan.tasks)]),
        d_kv(plan.parts > 1 ? new float[(size_t)(rows * plan.tasks)] : nullptr) {}
};

// Add the lanes of `count` vectors to doubles, and forget them.
VTK_INLINE void drain(V* vectors, int count, double* to) {
  for (int i = 0; i < count; i += 8) {
    const Eight sums = sum_rows(vectors + i);
    for (int j = 0; j < 8 && i + j < count; ++j) to[i + j] += (double)sums[j];
    for (int j = 0; j < 8; ++j) vectors[i + j] = zero();
  }
}

template <class T>
void backward_tasks(const TalkingHeads& call, const Parallel& parallel, const Shape& shape, const Plan& plan, Partial& partial) {
  const int64_t channels = (int64_t)shape.heads * shape.dim, head_rows = (int64_t)shape.tokens * shape.dim_ld;
  auto run = [&](int64_t task) {
    const int64_t index = task / plan.parts;
    const int part = (int)(task % plan.parts), heads = shape.heads;
    const Image<T> image(call, index);
    double* sums = partial.sums.get() + task * partial.weights;
    with_scratch([&](Carver& carver) __attribute__((always_inline)) {
      const size_t block = (size_t)heads * shape.block_rows * shape.dim_ld, matrix = round_up(heads * heads, 8);
      const Mixing mixing = make_mixing(carver, call);
      const RowBuffers buffers = make_row_buffers(carver, call, shape, true);
      const Gradients lanes{carver.take<V>(matrix), carver.take<V>(matrix), carver.take<V>(round_up(heads, 8))};
      float* keys = carver.take<float>(channels * shape.ld);
      float* values = carver.take<float>(channels * shape.ld);
      float* key_rows = carver.take<float>(heads * head_rows);
      float* queries = carver.take<float>(block);
      float* grads = carver.take<float>(block);
      float* scores = carver.take<float>(heads * shape.head_scores());
      float* weights = carver.take<float>(heads * shape.head_scores());
      float* d_k = carver.take<float>(plan.parts > 1 ? 0 : partial.rows);
      if (!carver.memory) return;
      if (plan.parts > 1) d_k = partial.d_kv.get() + task * partial.rows;
      float* d_v = d_k + heads * head_rows;
      memset(sums, 0, partial.weights * sizeof(double));
      memset(lanes.pre, 0, matrix * sizeof(V));
      memset(lanes.post, 0, matrix * sizeof(V));
      memset(lanes.post_bias, 0, round_up(heads, 8) * sizeof(V));
      pack_transposed(image.k, image.stride, shape.tokens, (int)channels, keys, shape.ld);
      pack_transposed(image.v, image.stride, shape.tokens, (int)channels, values, shape.ld);
      pack_heads(image.k, image.stride, shape.tokens, heads, shape.dim, key_rows, shape.dim_ld);
      T* d_qkv = (T*)call.d_qkv + index * shape.tokens * 3 * channels;
      const int first = (int)((int64_t)shape.tokens * part / plan.parts);
      for_blocks(shape, plan.parts, part, [&](int query, int count) __attribute__((always_inline)) {
        pack_heads(image.q + query * image.stride, image.stride, count, heads, shape.dim, queries, shape.dim_ld);
        pack_heads(image.grad + query * image.grad_stride, image.grad_stride, count, heads, shape.dim, grads, shape.dim_ld);
        all_scores(shape, queries, count, keys, scores);
        all_scores(shape, grads, count, values, weights);
        const Rows rows{call, shape, mixing, buffers, index, query, count};
        with_constant<kMostOutputs>(shape.group,
                                    [&](auto r) __attribute__((always_inline)) { backward_rows<decltype(r)::value>(rows, scores, weights, lanes); });
        drain(lanes.pre, heads * heads, sums);
        drain(lanes.post, heads * heads, sums + heads * heads);
        drain(lanes.post_bias, heads, sums + 2 * heads * heads);
        // the sum over queries is complete with the last block, and goes where it belongs
        const bool last = plan.parts == 1 && query + count == shape.tokens;
        for (int h = 0; h < heads; ++h) {
          const float *d_s = scores + h * shape.head_scores(), *p = weights + h * shape.head_scores();
          const int64_t slice = (int64_t)h * shape.dim, in_block = (int64_t)h * count * shape.dim_ld;
          product<T>({d_s, shape.ld, 1, key_rows + h * head_rows, shape.dim_ld, shape.tokens}, count, shape.dim,
                     {d_qkv + query * 3 * channels + slice, 3 * channels, nullptr, 0});
          const Product of_k{d_s, 1, shape.ld, queries + in_block, shape.dim_ld, count}, of_v{p, 1, shape.ld, grads + in_block, shape.dim_ld, count};
          float *sum_k = d_k + h * head_rows, *sum_v = d_v + h * head_rows;
          const float *add_k = query == first ? nullptr : sum_k, *add_v = query == first ? nullptr : sum_v;
          if (last) {
            product<T>(of_k, shape.tokens, shape.dim, {d_qkv + channels + slice, 3 * channels, add_k, shape.dim_ld});
            product<T>(of_v, shape.tokens, shape.dim, {d_qkv + 2 * channels + slice, 3 * channels, add_v, shape.dim_ld});
          } else {
            product<float>(of_k, shape.tokens, shape.dim_ld, {sum_k, shape.dim_ld, add_k, shape.dim_ld});
            product<float>(of_v, shape.tokens, shape.dim_ld, {sum_v, shape.dim_ld, add_v, shape.dim_ld});
          }
        }
      });
    });
  };
  parallel.for_each(plan.tasks, run);
}

// Add the shares of each image's queries, in their order.
template <class T>
void collect_rows(const TalkingHeads& call, const Parallel& parallel, const Shape& shape, const Plan& plan, const Partial& partial) {
  const int64_t channels = (int64_t)shape.heads * shape.dim;
  auto run = [&](int64_t task) {  // an image, and k or v
    const float* sums = partial.d_kv.get() + task / 2 * plan.parts * partial.rows + task % 2 * (partial.rows / 2);
    T* to = (T*)call.d_qkv + task / 2 * shape.tokens * 3 * channels + (1 + task % 2) * channels;
    for (int h = 0; h < shape.heads; ++h)
      for (int i = 0; i < shape.tokens; ++i) {
        const float* row = sums + ((int64_t)h * shape.tokens + i) * shape.dim_ld;
        for (int c = 0; c < shape.dim; c += W) {
          V sum = load(row + c);
          for (int part = 1; part < plan.parts; ++part) sum += load(row + part * partial.rows + c);
          store_row(to + i * 3 * channels + h * shape.dim + c, sum, c + W <= shape.dim ? W : shape.dim - c);
        }
      }
  };
  parallel.for_each(2 * call.batch, run);
}

void collect_weights(const TalkingHeads& call, const Shape& shape, const Plan& plan, const Partial& partial) {
  const int64_t matrix = (int64_t)shape.heads * shape.heads;
  auto total = [&](int64_t i) __attribute__((always_inline)) {
    double sum = 0.0;
    for (int64_t task = 0; task < plan.tasks; ++task) sum += partial.sums[task * partial.weights + i];
    return sum;
  };
  for (int64_t i = 0; i < matrix; ++i) call.d_pre_weight[i] = (float)(total(i) * (double)call.scale);
  for (int64_t i = 0; i < matrix; ++i) call.d_post_weight[i] = (float)total(matrix + i);
  for (int64_t i = 0; i < shape.heads; ++i) call.d_post_bias[i] = (float)total(2 * matrix + i);
}

template <class T>
void backward(const TalkingHeads& call, const Parallel& parallel) {
  const Shape shape(call);
  const Plan plan(call, shape, parallel.threads);
  Partial partial(shape, plan);
  backward_tasks<T>(call, parallel, shape, plan, partial);
  if (plan.parts > 1) collect_rows<T>(call, parallel, shape, plan, partial);
  collect_weights(call, shape, plan, partial);
}

}  // namespace

void talking_heads_attention_forward(const TalkingHeads& call, const Parallel& parallel) {
  if (call.dtype == DType::kFloat32) return forward<float>(call, parallel);
  if (call.dtype == DType::kBFloat16) return forward<BFloat16>(call, parallel);
  forward<Half>(call, parallel);
}

void talking_heads_attention_backward(const TalkingHeads& call, const Parallel& parallel) {
  if (call.dtype == DType::kFloat32) return backward<float>(call, parallel);
  if (call.dtype == DType::kBFloat16) return backward<BFloat16>(call, parallel);
  backward<Half>(call, parallel);
}

}  // namespace vtk::VTK_ISA
