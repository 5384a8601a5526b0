// The backward for windows of 65 to 144 tokens and heads of 32 on NVIDIA GPUs, in one kernel.
//
// A block takes every lanes-th window of one head and keeps the sums of the position bias's gradient in shared memory, where each number has
// one thread that adds to it: no atomics, and the same bits every time. Each of its nine warps owns 16 tokens of the window, first as queries
// (d_q and the bias), then as keys (d_k and d_v), and walks tiles of 16 of the others; scores never leave registers. The rows of the next
// window travel to shared memory meanwhile.
#include "common/abi.h"
#include "common/launch.cuh"
#include "common/mma.cuh"
#include "window_attention/cuda_geometry.cuh"

namespace vtk {
namespace {

constexpr int kHeadDim = 32, kTile = 16, kTiles = 9, kRows = kTiles * kTile, kBlock = kTiles * 32;
// no power of two: rows of 8 x 8 matrices, and of a warp's accumulators, lie in different banks
constexpr int kPitch = kHeadDim + 8, kBiasPitch = kRows + 4;
// of all windows of 144 tokens the square one's
constexpr int kTableRows = 23 * 23;
constexpr float kLog2E = 1.4426950408889634f;
// Published weights were trained with a finite mask
constexpr float kMask = -100.0f;

template <class T>
struct Problem {
  // maps [images, height, width, ...], contiguous
  const T *qkv, *grad_out, *out;
  const float* statistics;
  const float *bias_table, *qkv_bias;
  T* d_qkv;
  float *d_table_parts, *d_value_parts;
  Geometry geometry;
  int items, heads, lanes;
  float scale;

  __device__ int64_t channels() const { return static_cast<int64_t>(heads) * kHeadDim; }
};

// Of one window and head.
template <class T>
struct Rows {
  T q[kRows * kPitch], k[kRows * kPitch], v[kRows * kPitch], grad[kRows * kPitch], out[kRows * kPitch];
  float largest[kRows], inverse_sum[kRows];
  int token[kRows], region[kRows];
};

template <class T>
struct Shared {
  Rows<T> rows[2];
  float d_bias[kRows * kBiasPitch];
  int place[kRows];
  // P = exp2(S log2(e) - shift) factor, dS = P dP - P delta; the last without exp2
  float shift[kRows], factor[kRows], delta[kRows];
  // a warp's own sums over padded keys: of d_k, then of d_v
  float d_values[kTiles * 2 * kHeadDim];
  float table[kTableRows];
};

// Two neighbours, the first with an even index, in one access.
template <class V>
struct alignas(8) Pair {
  V numbers[2];

  __device__ V operator[](int i) const { return numbers[i]; }
};

template <class V>
__device__ Pair<V>& pair_at(V* numbers) {
  return *reinterpret_cast<Pair<V>*>(numbers);
}
template <class V>
__device__ Pair<V> pair_at(const V* numbers) {
  return *reinterpret_cast<const Pair<V>*>(numbers);
}

// ---- products of 16 rows -------------------------------------------------------------------------------------------------

// 16 rows of 32 numbers, as the first operand of two products.
struct Operand {
  uint32_t words[2][4];

  template <class T>
  __device__ Operand(const T* rows, int first, int lane) {
    const T* row = rows + (first + lane % 16) * kPitch + lane / 16 * 8;
    load_matrices(words[0], row);
    load_matrices(words[1], row + 16);
  }
};

// A 16 x 16 matrix: two accumulators side by side.
struct Square {
  float sums[2][4];

  // a (16 x 32) times the transposed 16 rows from `first`
  template <class T>
  __device__ Square(const Operand& a, const T* rows, int first, int lane) : sums{} {
    uint32_t left[4], right[4];
    const T* row = rows + (first + lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8;
    load_matrices(left, row);
    load_matrices(right, row + 16);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      multiply_add<T>(sums[n], a.words[0], left[2 * n], left[2 * n + 1]);
      multiply_add<T>(sums[n], a.words[1], right[2 * n], right[2 * n + 1]);
    }
  }
};

// 16 rows of 32 numbers: gradients of a warp's tokens.
struct Gradient {
  float sums[4][4];

  __device__ Gradient() : sums{} {}

  // += a (16 x 16) times the 16 rows from `first`
  template <class T>
  __device__ void add(const uint32_t (&a)[4], const T* rows, int first, int lane) {
    const T* row = rows + (first + lane % 16) * kPitch + lane / 16 * 8;
    uint32_t left[4], right[4];
    load_transposed(left, row);
    load_transposed(right, row + 16);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      multiply_add<T>(sums[n], a, left[2 * n], left[2 * n + 1]);
      multiply_add<T>(sums[n + 2], a, right[2 * n], right[2 * n + 1]);
    }
  }

  __device__ void scale(float factor) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] *= factor;
    }
  }

  // to the rows of the map that are there
  template <class T>
  __device__ void store(T* map, int64_t stride, const int* token, int lane) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int index = token[lane / 4 + 8 * h];
      if (index < 0) continue;
      uint32_t* row = reinterpret_cast<uint32_t*>(map + index * stride) + lane % 4;
#pragma unroll
      for (int n = 0; n < 4; ++n) row[4 * n] = pack<T>(sums[n][2 * h], sums[n][2 * h + 1]);
    }
  }

  // the sum over padded tokens, added to 32 numbers that belong to the warp
  __device__ void add_padded(float* values, const int* token, int lane) const {
    const bool top = token[lane / 4] == kPadding, bottom = token[lane / 4 + 8] == kPadding;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float sum = (top ? sums[n][i] : 0.0f) + (bottom ? sums[n][i + 2] : 0.0f);
        for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        if (lane < 4) values[8 * n + 2 * lane + i] += sum;
      }
    }
  }
};

// ---- memory --------------------------------------------------------------------------------------------------------------

template <class T>
__device__ void locate(Rows<T>& rows, const Geometry& geometry, int item) {
  if (threadIdx.x >= kRows) return;
  const Token token = find_token(geometry, Window(geometry, item), threadIdx.x);
  rows.token[threadIdx.x] = token.index;
  rows.region[threadIdx.x] = token.region;
}

// Eight numbers of a token that is not on the map.
template <class T>
__device__ void fill(T* row, const float* values) {
  uint32_t words[4]{};
  if (values) {
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = pack<T>(values[2 * i], values[2 * i + 1]);
  }
  *reinterpret_cast<uint4*>(row) = {words[0], words[1], words[2], words[3]};
}

// Starts to copy the rows of a window whose tokens were located.
template <class T>
__device__ void load(Rows<T>& rows, const Problem<T>& problem, int item, int head) {
  const int64_t channels = problem.channels();
  for (int i = threadIdx.x; i < kRows * 4; i += kBlock) {
    const int row = i / 4, column = i % 4 * 8, channel = head * kHeadDim + column, to = row * kPitch + column;
    const int64_t token = rows.token[row];
    if (token >= 0) {
      const T* from = problem.qkv + token * 3 * channels + channel;
      copy_async<16>(rows.q + to, from);
      copy_async<16>(rows.k + to, from + channels);
      copy_async<16>(rows.v + to, from + 2 * channels);
      copy_async<16>(rows.grad + to, problem.grad_out + token * channels + channel);
      copy_async<16>(rows.out + to, problem.out + token * channels + channel);
    } else {
      const float* values = token == kPadding && problem.qkv_bias ? problem.qkv_bias + channel : nullptr;
      fill(rows.q + to, values);
      fill(rows.k + to, values ? values + channels : nullptr);
      fill(rows.v + to, values ? values + 2 * channels : nullptr);
      // nothing leaves the op there
      fill<T>(rows.grad + to, nullptr);
      fill<T>(rows.out + to, nullptr);
    }
  }
  const int tokens = problem.geometry.tokens();
  if (threadIdx.x < tokens) {
    const int64_t first = (static_cast<int64_t>(item) * problem.heads + head) * tokens, all = static_cast<int64_t>(problem.items) * problem.heads * tokens;
    copy_async<4>(rows.largest + threadIdx.x, problem.statistics + first + threadIdx.x);
    copy_async<4>(rows.inverse_sum + threadIdx.x, problem.statistics + all + first + threadIdx.x);
  }
}

// What the softmax of a warp's 16 queries needs: two lanes a row.
template <class T>
__device__ void prepare(Shared<T>& shared, const Rows<T>& rows, int tokens, int first, int lane) {
  const int row = first + lane / 2;
  const T *grad = rows.grad + row * kPitch + lane % 2 * 16, *out = rows.out + row * kPitch + lane % 2 * 16;
  float delta = 0.0f;
#pragma unroll
  for (int i = 0; i < 16; ++i) delta = fmaf(static_cast<float>(grad[i]), static_cast<float>(out[i]), delta);
  delta += __shfl_xor_sync(0xffffffffu, delta, 1);
  if (lane % 2 == 0) {
    const bool there = row < tokens;
    const float largest = there ? rows.largest[row] : 0.0f, shift = largest * kLog2E;
    // the statistics promise `largest`, the product is rounded
    const float factor = there ? rows.inverse_sum[row] / fast_exp2(fmaf(largest, kLog2E, -shift)) : 0.0f;
    shared.shift[row] = there ? shift : 1e30f;
    shared.factor[row] = factor;
    shared.delta[row] = factor * delta;
  }
  __syncwarp();
}

// ---- the two passes ------------------------------------------------------------------------------------------------------

// What is added to a score: position bias, mask of the shift, -inf for keys that take no part.
template <bool kMasked>
__device__ float addend(float bias, int query_region, int key_region) {
  if (!kMasked) return bias;
  return bias + (key_region == kIgnored ? -INFINITY : key_region == query_region ? 0.0f : kMask);
}

// The warp's tokens as queries: d_q, and their rows of d_bias.
template <bool kMasked, class T>
__device__ Gradient query_pass(Shared<T>& shared, const Rows<T>& rows, float scale, int center, int first, int lane) {
  const Operand q(rows.q, first, lane), grad(rows.grad, first, lane);
  const int row[2] = {first + lane / 4, first + lane / 4 + 8};
  const float* bias[2];
  float shift[2], factor[2], delta[2];
  int region[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    bias[h] = shared.table + center + shared.place[row[h]];
    shift[h] = shared.shift[row[h]];
    factor[h] = shared.factor[row[h]];
    delta[h] = shared.delta[row[h]];
    region[h] = rows.region[row[h]];
  }
  Gradient d_q;
#pragma unroll 3
  for (int tile = 0; tile < kRows; tile += kTile) {
    const Square scores(q, rows.k, tile, lane), d_p(grad, rows.v, tile, lane);
    uint32_t d_s[4];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int key = tile + 8 * n + lane % 4 * 2;
      const Pair<int> place = pair_at(shared.place + key), key_region = pair_at(rows.region + key);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float pair[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float score = fmaf(scores.sums[n][2 * h + i], scale, addend<kMasked>(bias[h][-place[i]], region[h], key_region[i]));
          pair[i] = fast_exp2(fmaf(score, kLog2E, -shift[h])) * fmaf(d_p.sums[n][2 * h + i], factor[h], -delta[h]);
        }
        Pair<float>& sums = pair_at(shared.d_bias + row[h] * kBiasPitch + key);
        sums = {sums[0] + pair[0], sums[1] + pair[1]};
        d_s[2 * n + h] = pack<T>(pair[0], pair[1]);
      }
    }
    d_q.add(d_s, rows.k, tile, lane);
  }
  d_q.scale(scale);
  return d_q;
}

// The warp's tokens as keys, with scores transposed: d_k and d_v.
template <bool kMasked, class T>
__device__ void key_pass(Gradient& d_k, Gradient& d_v, const Shared<T>& shared, const Rows<T>& rows, float scale, int center, int first, int lane) {
  const Operand k(rows.k, first, lane), v(rows.v, first, lane);
  const float* bias[2];
  int region[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    bias[h] = shared.table + center - shared.place[first + lane / 4 + 8 * h];
    region[h] = rows.region[first + lane / 4 + 8 * h];
  }
#pragma unroll 3
  for (int tile = 0; tile < kRows; tile += kTile) {
    const Square scores(k, rows.q, tile, lane), d_p(v, rows.grad, tile, lane);
    uint32_t p[4], d_s[4];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int query = tile + 8 * n + lane % 4 * 2;
      const Pair<int> place = pair_at(shared.place + query), query_region = pair_at(rows.region + query);
      const Pair<float> shift = pair_at(shared.shift + query), factor = pair_at(shared.factor + query), delta = pair_at(shared.delta + query);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float p_pair[2], d_s_pair[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float score = fmaf(scores.sums[n][2 * h + i], scale, addend<kMasked>(bias[h][place[i]], query_region[i], region[h]));
          const float e = fast_exp2(fmaf(score, kLog2E, -shift[i]));
          p_pair[i] = e * factor[i];
          d_s_pair[i] = e * fmaf(d_p.sums[n][2 * h + i], factor[i], -delta[i]);
        }
        p[2 * n + h] = pack<T>(p_pair[0], p_pair[1]);
        d_s[2 * n + h] = pack<T>(d_s_pair[0], d_s_pair[1]);
      }
    }
    d_v.add(p, rows.grad, tile, lane);
    d_k.add(d_s, rows.q, tile, lane);
  }
  d_k.scale(scale);
}

// Each table entry adds the pairs of its offset, queries in order.
__device__ float sum_of_offset(const float* d_bias, const Geometry& geometry, int entry) {
  const int height = geometry.y.window, width = geometry.x.window;
  const int dy = entry / (2 * width - 1) - height + 1, dx = entry % (2 * width - 1) - width + 1;
  float sum = 0.0f;
  for (int y = max(dy, 0); y < min(height, height + dy); ++y) {
    for (int x = max(dx, 0); x < min(width, width + dx); ++x) sum += d_bias[(y * width + x) * kBiasPitch + (y - dy) * width + x - dx];
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kBlock, 1) window_attention_large_backward_kernel(const __grid_constant__ Problem<T> problem) {
  Shared<T>& shared = *static_cast<Shared<T>*>(dynamic_shared());
  const Geometry& geometry = problem.geometry;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = warp * kTile;
  const int head = blockIdx.x % problem.heads, center = geometry.table_center(), tokens = geometry.tokens();
  for (int i = threadIdx.x; i < kRows * kBiasPitch; i += kBlock) shared.d_bias[i] = 0.0f;
  for (int i = threadIdx.x; i < geometry.table_rows(); i += kBlock) shared.table[i] = problem.bias_table ? problem.bias_table[i * problem.heads + head] : 0.0f;
  for (int i = threadIdx.x; i < kTiles * 2 * kHeadDim; i += kBlock) shared.d_values[i] = 0.0f;
  if (threadIdx.x < kRows) shared.place[threadIdx.x] = threadIdx.x < tokens ? geometry.table_place(threadIdx.x) : 0;

  const bool uneven = tokens < kRows || geometry.ignore_padding && (geometry.y.padded() || geometry.x.padded());
  int item = blockIdx.x / problem.heads, buffer = 0;
  locate(shared.rows[0], geometry, item);
  __syncthreads();
  load(shared.rows[0], problem, item, head);
#pragma unroll 1
  for (; item < problem.items; item += problem.lanes, buffer ^= 1) {
    Rows<T>&rows = shared.rows[buffer], &next_rows = shared.rows[buffer ^ 1];
    const int next = item + problem.lanes;
    if (next < problem.items) locate(next_rows, geometry, next);
    copies_arrived();
    __syncthreads();
    if (next < problem.items) load(next_rows, problem, next, head);

    prepare(shared, rows, tokens, first, lane);
    const Window window(geometry, item);
    const bool masked = uneven || geometry.y.has_seam(window.row) || geometry.x.has_seam(window.column);
    T* d_qkv = problem.d_qkv + head * kHeadDim;
    const int64_t channels = problem.channels();
    const Gradient d_q =
        masked ? query_pass<true>(shared, rows, problem.scale, center, first, lane) : query_pass<false>(shared, rows, problem.scale, center, first, lane);
    d_q.store(d_qkv, 3 * channels, rows.token + first, lane);
    __syncthreads();
    Gradient d_k, d_v;
    if (masked) {
      key_pass<true>(d_k, d_v, shared, rows, problem.scale, center, first, lane);
    } else {
      key_pass<false>(d_k, d_v, shared, rows, problem.scale, center, first, lane);
    }
    d_k.store(d_qkv + channels, 3 * channels, rows.token + first, lane);
    d_v.store(d_qkv + 2 * channels, 3 * channels, rows.token + first, lane);
    if (problem.d_value_parts) {
      float* values = shared.d_values + warp * 2 * kHeadDim;
      d_k.add_padded(values, rows.token + first, lane);
      d_v.add_padded(values + kHeadDim, rows.token + first, lane);
    }
    __syncthreads();
  }

  const int64_t part = blockIdx.x / problem.heads;
  if (problem.d_table_parts) {
    float* d_table = problem.d_table_parts + part * geometry.table_rows() * problem.heads + head;
    for (int i = threadIdx.x; i < geometry.table_rows(); i += kBlock) d_table[i * problem.heads] = sum_of_offset(shared.d_bias, geometry, i);
  }
  if (problem.d_value_parts && threadIdx.x < 2 * kHeadDim) {
    float sum = 0.0f;
    for (int i = 0; i < kTiles; ++i) sum += shared.d_values[i * 2 * kHeadDim + threadIdx.x];
    const int of_value = threadIdx.x / kHeadDim, column = threadIdx.x % kHeadDim;
    problem.d_value_parts[(part * 2 + of_value) * problem.channels() + head * kHeadDim + column] = sum;
  }
}

// ---- op ------------------------------------------------------------------------------------------------------------------

// cuda.py knows it too: devices that have less are refused there
constexpr size_t kSharedBytes = 211780;
static_assert(sizeof(Shared<__half>) == kSharedBytes && sizeof(Shared<__nv_bfloat16>) == kSharedBytes);

template <class T>
void launch_backward(const Tensor& grad_out, const Tensor& out, const Tensor& statistics, const Tensor& qkv, const MaybeTensor& bias_table,
                     const MaybeTensor& qkv_bias, int64_t heads, const Geometry& geometry, double scale, Tensor& d_qkv, const MaybeTensor& d_table_parts,
                     const MaybeTensor& d_value_parts, int64_t lanes) {
  const int items = static_cast<int>(qkv.size(0)) * geometry.y.windows * geometry.x.windows;
  const Problem<T> problem{static_cast<const T*>(qkv.const_data_ptr()),
                           static_cast<const T*>(grad_out.const_data_ptr()),
                           static_cast<const T*>(out.const_data_ptr()),
                           static_cast<const float*>(statistics.const_data_ptr()),
                           floats(bias_table),
                           floats(qkv_bias),
                           static_cast<T*>(d_qkv.mutable_data_ptr()),
                           mutable_floats(d_table_parts),
                           mutable_floats(d_value_parts),
                           geometry,
                           items,
                           static_cast<int>(heads),
                           static_cast<int>(lanes),
                           static_cast<float>(scale)};
  Launch(qkv).with_shared(sizeof(Shared<T>), window_attention_large_backward_kernel<T>, lanes * heads, kBlock, problem);
}

void large_backward(Tensor grad_out, Tensor out, Tensor statistics, Tensor qkv, MaybeTensor bias_table, MaybeTensor qkv_bias, int64_t num_heads,
                    int64_t window_h, int64_t window_w, int64_t shift_h, int64_t shift_w, double scale, bool mask_padding, bool shift_first, int64_t lanes,
                    Tensor d_qkv, MaybeTensor d_table_parts, MaybeTensor d_value_parts) {
  STD_TORCH_CHECK(qkv.dim() == 4 && qkv.is_contiguous() && grad_out.is_contiguous() && out.is_contiguous(), "maps must be contiguous");
  STD_TORCH_CHECK(qkv.size(3) == 3 * kHeadDim * num_heads && window_h * window_w <= kRows, "heads must be of 32, windows of at most 144 tokens");
  STD_TORCH_CHECK(dtype_of(qkv) != DType::kFloat32 && grad_out.scalar_type() == qkv.scalar_type() && out.scalar_type() == qkv.scalar_type(),
                  "maps must be float16 or bfloat16, all the same");
  const Geometry geometry{Axis(qkv.size(1), window_h, shift_h, shift_first), Axis(qkv.size(2), window_w, shift_w, shift_first), mask_padding};
  STD_TORCH_CHECK(lanes >= 1 && lanes <= qkv.size(0) * geometry.y.windows * geometry.x.windows, "each lane needs a window");
  const auto launch = dtype_of(qkv) == DType::kFloat16 ? launch_backward<__half> : launch_backward<__nv_bfloat16>;
  launch(grad_out, out, statistics, qkv, bias_table, qkv_bias, num_heads, geometry, scale, d_qkv, d_table_parts, d_value_parts, lanes);
}

}  // namespace
}  // namespace vtk

STABLE_TORCH_LIBRARY_IMPL(vtkernels_native, CUDA, m) { m.impl("window_attention_large_backward", TORCH_BOX(&vtk::large_backward)); }
