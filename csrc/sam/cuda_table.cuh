// Lists of tensors as one kernel parameter, by value: no copy to the device, nothing to keep alive, any number of tensors in one launch.
//
// A block takes one chunk of one tensor. Tensors whose arrays all begin at multiples of 16 bytes are walked 16 bytes at a time, up to
// the last few elements; others one by one.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <vector>

#include "common/abi.h"

namespace vtk {

using Tensors = std::vector<Tensor>;
using Numbers = std::vector<double>;

constexpr int kThreads = 256;
constexpr int kChunk = 8192;
// what five lists and two numbers of a tensor leave room for in the 32 KB of a kernel's parameters; cuda.py knows it too
constexpr int kMaxTensors = 576;
constexpr int kParameterBytes = 32764;

template <int kLists, int kNumbers>
struct Table {
  void* arrays[kLists][kMaxTensors];
  int64_t sizes[kMaxTensors];
  float numbers[kNumbers > 0 ? kNumbers : 1][kMaxTensors];
  // the chunks of a tensor and of all before it, times 16, plus the flags
  uint32_t ends[kMaxTensors];
  int tensors;
};
static_assert(sizeof(Table<5, 1>) <= kParameterBytes - 64, "what kernels take beside the table needs room too");

enum Flag : uint32_t { kKind = 3, kAligned = 4, kMarked = 8 };

struct Place {
  int tensor, count;
  int64_t start;
  uint32_t flags;
};

template <class T>
__device__ Place find_chunk(const T& table) {
  // the first tensor that ends after this chunk
  int low = 0, high = table.tensors - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (table.ends[middle] / 16 > blockIdx.x) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const uint32_t first = low == 0 ? 0 : table.ends[low - 1] / 16;
  const int64_t start = static_cast<int64_t>(blockIdx.x - first) * kChunk, left = table.sizes[low] - start;
  return {low, static_cast<int>(left < kChunk ? left : kChunk), start, table.ends[low] % 16};
}

template <class T, class Table>
__device__ T* array_of(const Table& table, int list, const Place& place) {
  return static_cast<T*>(table.arrays[list][place.tensor]) + place.start;
}

// f(T{}) for the storage type of the tensor
template <class F>
__device__ void with_type(const Place& place, F f) {
  switch (place.flags & kKind) {
    case static_cast<uint32_t>(DType::kBFloat16): return f(__nv_bfloat16{});
    case static_cast<uint32_t>(DType::kFloat16): return f(__half{});
    default: return f(float{});
  }
}

template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T values[N];
};

template <int N>
struct Floats {
  float values[N];
};

template <int N, class T>
__device__ Floats<N> widen(const Pack<T, N>& pack) {
  Floats<N> wide;
#pragma unroll
  for (int k = 0; k < N; ++k) wide.values[k] = static_cast<float>(pack.values[k]);
  return wide;
}

template <int N, class T>
__device__ Pack<T, N> load(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}

template <int N, class T>
__device__ void store(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

template <int N, class T>
__device__ void store(T* p, const Floats<N>& wide) {
  Pack<T, N> pack;
#pragma unroll
  for (int k = 0; k < N; ++k) pack.values[k] = static_cast<T>(wide.values[k]);
  store<N>(p, pack);
}

template <int N>
struct Width {
  static constexpr int kValue = N;
};

// f(i, Width<N>) for all elements of the chunk, N at a time
template <class T, class F>
__device__ void walk(const Place& place, F f) {
  constexpr int kWide = 16 / sizeof(T);
  const int whole = place.flags & kAligned ? place.count / kWide * kWide : 0;
  for (int i = threadIdx.x * kWide; i < whole; i += kThreads * kWide) f(i, Width<kWide>{});
  for (int i = whole + threadIdx.x; i < place.count; i += kThreads) f(i, Width<1>{});
}

template <class T, class Table>
__device__ void copy_chunk(const Table& table, const Place& place, int to, int from) {
  T* target = array_of<T>(table, to, place);
  const T* source = array_of<T>(table, from, place);
  walk<T>(place, [&](int i, auto width) {
    constexpr int N = decltype(width)::kValue;
    store<N>(target + i, load<N>(source + i));
  });
}

// Fills the columns that every table has, and returns the number of chunks. `lists` point to as many lists as the table has.
template <int kLists, int kNumbers>
int64_t fill_table(Table<kLists, kNumbers>& table, const Tensors* const (&lists)[kLists], const std::vector<int64_t>* marked = nullptr) {
  const Tensors& first = *lists[0];
  STD_TORCH_CHECK(first.size() <= kMaxTensors, "the CUDA kernels take at most ", kMaxTensors, " tensors, got ", first.size());
  int64_t chunks = 0;
  table.tensors = static_cast<int>(first.size());
  for (size_t i = 0; i < first.size(); ++i) {
    uintptr_t bits = 0;
    for (int list = 0; list < kLists; ++list) {
      table.arrays[list][i] = lists[list]->empty() ? nullptr : const_cast<void*>((*lists[list])[i].const_data_ptr());
      bits |= reinterpret_cast<uintptr_t>(table.arrays[list][i]);
    }
    table.sizes[i] = first[i].numel();
    chunks += (table.sizes[i] + kChunk - 1) / kChunk;
    STD_TORCH_CHECK(chunks < (int64_t{1} << 28), "the tensors have more elements than the CUDA kernels can count");
    table.ends[i] =
        static_cast<uint32_t>(chunks * 16 + static_cast<int>(dtype_of(first[i])) + (bits % 16 == 0 ? kAligned : 0) + (marked && (*marked)[i] ? kMarked : 0));
  }
  return chunks;
}

}  // namespace vtk
