// Pairs for dense relative localisation: limited by memory, so each row is read once and each result written once.
#include "drloc_pairs/kernel.h"

#include "common/scratch.h"
#include "common/simd.h"

namespace vtk::VTK_ISA {
namespace {

// results of more bytes than this go past the caches
constexpr int64_t kStreamFrom = 8 << 20;

template <class F>
VTK_INLINE void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::kBFloat16: return f(BFloat16{});
    case DType::kFloat16: return f(Half{});
    default: return f(float{});
  }
}

VTK_INLINE int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

struct Words {
  uint32_t word[4];
};

// Philox4x32-10 for the counter (pair, image, offset) under the key `seed`
VTK_INLINE Words draw(uint64_t seed, uint32_t pair, uint32_t image, uint64_t offset) {
  uint32_t c0 = pair, c1 = image, c2 = (uint32_t)offset, c3 = (uint32_t)(offset >> 32), k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// ---- copying a row of bytes ------------------------------------------------------------------------------------------
constexpr int64_t kBytes = sizeof(V);

#if defined(__AVX512F__)
VTK_INLINE void stream_bytes(char* to, V v) { _mm512_stream_ps((float*)to, v); }
#elif defined(__AVX2__)
VTK_INLINE void stream_bytes(char* to, V v) { _mm256_stream_ps((float*)to, v); }
#else
VTK_INLINE void stream_bytes(char* to, V v) { store((float*)to, v); }
#endif

VTK_INLINE V load_bytes(const char* from) {
  V v;
  memcpy(&v, from, kBytes);
  return v;
}

template <bool STREAM>
VTK_INLINE void copy_row(char* to, const char* from, int64_t bytes) {
  auto put = [](char* p, V v) __attribute__((always_inline)) {
    if constexpr (STREAM)
      stream_bytes(p, v);
    else
      memcpy(p, &v, kBytes);
  };
  int64_t i = 0;
  for (; i + 4 * kBytes <= bytes; i += 4 * kBytes) {
    const V a = load_bytes(from + i), b = load_bytes(from + i + kBytes), c = load_bytes(from + i + 2 * kBytes), d = load_bytes(from + i + 3 * kBytes);
    put(to + i, a);
    put(to + i + kBytes, b);
    put(to + i + 2 * kBytes, c);
    put(to + i + 3 * kBytes, d);
  }
  for (; i + kBytes <= bytes; i += kBytes) put(to + i, load_bytes(from + i));
  for (; i < bytes; i += 2) memcpy(to + i, from + i, 2);  // no dtype is smaller
}

VTK_INLINE int64_t held(int64_t coordinate, int64_t size) { return coordinate < 0 ? 0 : coordinate < size ? coordinate : size - 1; }

VTK_INLINE float target(const DrlocPairs& call, int64_t difference, int64_t size) {
  const float distance = (float)(call.is_signed || difference >= 0 ? difference : -difference);
  return call.normalize ? distance / (float)size : distance;
}

// Pairs [begin, end) of one image: positions, targets and features.
template <bool STREAM>
void gather(const DrlocPairs& call, int64_t image, int64_t begin, int64_t end) {
  const int64_t size = element_size(call.dtype), row = call.channels * size;
  const char* features = (const char*)call.features + image * call.feature_stride[0] * size;
  auto address = [&](const int64_t* p)
                     __attribute__((always_inline)) { return features + (p[0] * call.feature_stride[1] + p[1] * call.feature_stride[2]) * size; };
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t index = image * call.pairs + pair;
    int64_t* p = call.positions + 4 * index;
    if (call.given) {
      for (int i = 0; i < 4; ++i) p[i] = held(call.given[4 * index + i], i & 1 ? call.width : call.height);
    } else {
      const Words words = draw(call.seed, (uint32_t)pair, (uint32_t)image, call.offset);
      for (int i = 0; i < 4; ++i) p[i] = (int64_t)(((uint64_t)words.word[i] * (uint64_t)(i & 1 ? call.width : call.height)) >> 32);
    }
    call.targets[2 * index] = target(call, p[0] - p[2], call.height);
    call.targets[2 * index + 1] = target(call, p[1] - p[3], call.width);
    char* out = (char*)call.out + 2 * index * row;
    copy_row<STREAM>(out, address(p), row);
    copy_row<STREAM>(out + row, address(p + 2), row);
  }
  if (STREAM) stream_fence();
}

// ---- backward --------------------------------------------------------------------------------------------------------
// The rows of an image by the position they came from: those of position p are rows[first[p]] to rows[first[p + 1]], in the
// order of the pairs, first before second.
struct ByPosition {
  int32_t* first;  // [positions + 1]
  int32_t* rows;   // [2 * pairs]
};

VTK_INLINE int64_t place(const DrlocPairs& call, const int64_t* p) { return held(p[0], call.height) * call.width + held(p[1], call.width); }

void sort(const DrlocPairs& call, int64_t image, ByPosition by) {
  const int64_t positions = call.height * call.width, rows = 2 * call.pairs;
  const int64_t* p = call.positions + 4 * image * call.pairs;
  memset(by.first, 0, (positions + 1) * sizeof(int32_t));
  for (int64_t row = 0; row < rows; ++row) ++by.first[place(call, p + 2 * row) + 1];
  for (int64_t i = 0; i < positions; ++i) by.first[i + 1] += by.first[i];
  // each position's start moves to its end, which is the start of the next
  for (int64_t row = 0; row < rows; ++row) by.rows[by.first[place(call, p + 2 * row)]++] = (int32_t)row;
  for (int64_t i = positions; i > 0; --i) by.first[i] = by.first[i - 1];
  by.first[0] = 0;
}

// N vectors of the sum of `count` rows
template <int N, bool STREAM, class T>
VTK_INLINE void add_rows(T* to, const T* const* from, int count, int64_t channel, int lanes) {
  V sum[N];
  VTK_UNROLL for (int k = 0; k < N; ++k) sum[k] = count ? load_row(from[0] + channel + k * W, N == 1 ? lanes : W) : zero();
  for (int i = 1; i < count; ++i) {
    VTK_UNROLL for (int k = 0; k < N; ++k) sum[k] = sum[k] + load_row(from[i] + channel + k * W, N == 1 ? lanes : W);
  }
  VTK_UNROLL for (int k = 0; k < N; ++k) {
    if (STREAM && (N > 1 || lanes == W))
      stream_row(to + channel + k * W, sum[k]);
    else
      store_row(to + channel + k * W, sum[k], N == 1 ? lanes : W);
  }
}

// Channels [begin, end) of all positions of one image: each row of the gradient is read once, each result written once.
template <bool STREAM, class T>
void scatter(const DrlocPairs& call, int64_t image, int64_t begin, int64_t end, ByPosition by, const T** rows) {
  const int64_t positions = call.height * call.width;
  const T* grad = (const T*)call.grad_out + image * call.grad_stride[0];
  for (int64_t i = 0; i < 2 * call.pairs; ++i) rows[i] = grad + (by.rows[i] >> 1) * call.grad_stride[1] + (by.rows[i] & 1) * call.channels;
  for (int64_t position = 0; position < positions; ++position) {
    const T* const* from = rows + by.first[position];
    const int count = by.first[position + 1] - by.first[position];
    // the next position's rows, which lie wherever the draw has put them, come while this one's are added
    const int ahead = by.first[position + 1 < positions ? position + 2 : positions] - by.first[position];
    T* to = (T*)call.d_features + (image * positions + position) * call.channels;
    int64_t c = begin;
    for (; c + 4 * W <= end; c += 4 * W) {
      for (int i = count; i < ahead; ++i) {
        for (int line = 0; line < 4 * W * (int)sizeof(T); line += 64) __builtin_prefetch((const char*)(from[i] + c) + line);
      }
      add_rows<4, STREAM>(to, from, count, c, W);
    }
    for (; c < end; c += W) add_rows<1, STREAM>(to, from, count, c, end - c < W ? (int)(end - c) : W);
  }
  if (STREAM) stream_fence();
}

template <class T>
VTK_INLINE bool streams(const void* to, int64_t bytes, int64_t row) {
  return bytes >= kStreamFrom && (uintptr_t)to % 64 == 0 && row % 64 == 0;
}

}  // namespace

void drloc_pairs_forward(const DrlocPairs& call, const Parallel& parallel) {
  const int64_t row = call.channels * element_size(call.dtype), bytes = 2 * call.batch * call.pairs * row;
  const bool stream = streams<char>(call.out, bytes, row);
  // a few pieces for each thread, of whole images if there are enough of them
  const int64_t per_image = call.batch >= 4 * parallel.threads ? 1 : 4 * parallel.threads < call.pairs ? 4 * parallel.threads : call.pairs;
  const int64_t share = (call.pairs + per_image - 1) / per_image;
  auto run = [&](int64_t task) {
    const int64_t image = task / per_image, begin = task % per_image * share, end = begin + share < call.pairs ? begin + share : call.pairs;
    if (stream)
      gather<true>(call, image, begin, end);
    else
      gather<false>(call, image, begin, end);
  };
  parallel.for_each(call.batch * per_image, run);
}

void drloc_pairs_backward(const DrlocPairs& call, const Parallel& parallel) {
  const int64_t positions = call.height * call.width, row = call.channels * element_size(call.dtype), bytes = call.batch * positions * row;
  const bool stream = streams<char>(call.d_features, bytes, row);
  // slices of channels where there are few images: sums do not depend on it
  const int64_t blocks = (call.channels + 4 * W - 1) / (4 * W);
  const int64_t slices = call.batch >= 4 * parallel.threads ? 1 : blocks < parallel.threads ? blocks : parallel.threads;
  const int64_t share = (blocks + slices - 1) / slices * 4 * W;
  auto run = [&](int64_t task) {
    const int64_t image = task / slices, begin = task % slices * share, end = begin + share < call.channels ? begin + share : call.channels;
    char* scratch = (char*)thread_scratch(2 * call.pairs * sizeof(void*) + (2 * call.pairs + positions + 1) * sizeof(int32_t));
    int32_t* first = (int32_t*)(scratch + 2 * call.pairs * sizeof(void*));
    const ByPosition by{first, first + positions + 1};
    sort(call, image, by);
    with_type(call.dtype, [&](auto type) {
      using T = decltype(type);
      if (stream)
        scatter<true, T>(call, image, begin, end, by, (const T**)scratch);
      else
        scatter<false, T>(call, image, begin, end, by, (const T**)scratch);
    });
  };
  parallel.for_each(call.batch * slices, run);
}

}  // namespace vtk::VTK_ISA
