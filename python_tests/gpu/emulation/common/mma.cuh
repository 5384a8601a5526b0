// In the place of csrc/common/mma.cuh: what a warp does together, by fibers that show each other what they hold.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "common/launch.cuh"

namespace emulation {

struct Held {
  const void* row;
  std::array<uint32_t, 4> a;
  uint32_t b[2];
};
inline std::vector<Held> held(1024);

inline const Held& of_lane(unsigned lane) { return held[thread.x / 32 * 32 + lane]; }

template <class T>
float half_of(uint32_t word, unsigned which) {
  T number;
  const uint16_t bits = static_cast<uint16_t>(which ? word >> 16 : word);
  memcpy(&number, &bits, 2);
  return static_cast<float>(number);
}

}  // namespace emulation

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace vtk {

using std::max, std::min;

template <class T>
void load_matrices(uint32_t (&words)[4], const T* row) {
  const unsigned lane = threadIdx.x % 32;
  emulation::held[threadIdx.x].row = row;
  emulation::meet();
  for (unsigned i = 0; i < 4; ++i) memcpy(&words[i], static_cast<const T*>(emulation::of_lane(8 * i + lane / 4).row) + lane % 4 * 2, 4);
  emulation::meet();
}

template <class T>
void load_transposed(uint32_t (&words)[4], const T* row) {
  const unsigned lane = threadIdx.x % 32;
  emulation::held[threadIdx.x].row = row;
  emulation::meet();
  for (unsigned i = 0; i < 4; ++i) {
    for (unsigned half = 0; half < 2; ++half) {
      const T* other = static_cast<const T*>(emulation::of_lane(8 * i + lane % 4 * 2 + half).row) + lane / 4;
      memcpy(reinterpret_cast<char*>(&words[i]) + 2 * half, other, 2);
    }
  }
  emulation::meet();
}

template <class T>
void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b_top, uint32_t b_bottom) {
  const unsigned lane = threadIdx.x % 32;
  emulation::held[threadIdx.x].a = std::to_array(a);
  emulation::held[threadIdx.x].b[0] = b_top;
  emulation::held[threadIdx.x].b[1] = b_bottom;
  emulation::meet();
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned lower = i / 2, column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned right = k / 8, pair = k % 8 / 2;
      const float x = emulation::half_of<T>(emulation::of_lane(lane / 4 * 4 + pair).a[lower + 2 * right], k % 2);
      sums[i] += x * emulation::half_of<T>(emulation::of_lane(column * 4 + pair).b[right], k % 2);
    }
  }
  emulation::meet();
}

template <class T>
uint32_t pack(float low, float high) {
  const T pair[2] = {static_cast<T>(low), static_cast<T>(high)};
  uint32_t word;
  memcpy(&word, pair, 4);
  return word;
}

inline float fast_exp2(float x) { return exp2f(x); }

template <int kBytes>
void copy_async(void* shared, const void* global) {
  memcpy(shared, global, kBytes);
}

inline void copies_arrived() {}

}  // namespace vtk
