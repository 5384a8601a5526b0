// Operands of a product in the order the register tile reads them. A panel holds SIZE rows (or columns) of an operand,
// step by step of the depth they are multiplied along: panel[depth][SIZE], zeros where the operand ends.
#pragma once
#include "common/simd.h"

namespace vtk::VTK_ISA {

// 28 of 32 accumulators with AVX-512, 12 of 16 with AVX2: the rest holds the operands
constexpr int kRows = W == 16 ? 14 : W == 8 ? 6 : 4, kVectors = 2, kColumns = kVectors * W;

VTK_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
VTK_INLINE int64_t groups(int64_t count, int64_t size) { return (count + size - 1) / size; }

// From an operand that is dense across the panels, `stride` from one step of the depth to the next: groups(count, SIZE)
// panels, one after the other. Step by step, as the operand lies in memory.
template <int SIZE, class Function>
VTK_INLINE void pack_across(const float* from, int64_t stride, int64_t depth, int64_t count, float* panels, Function f) {
  for (int64_t k = 0; k < depth; ++k, from += stride) {
    float* to = panels + k * SIZE;
    int64_t i = 0;
    for (; i + SIZE <= count; i += SIZE, to += depth * SIZE) {
      VTK_UNROLL for (int v = 0; v < SIZE; v += W) {
        constexpr int kLast = SIZE % W == 0 ? W : SIZE % W;
        const int lanes = v + W > SIZE ? kLast : W;
        // over the end of the panel's step, where another comes to be written
        if (lanes < W && k + 1 < depth && i + v + W <= count)
          store(to + v, f.value(load(from + i + v)));
        else
          store_row(to + v, f.value(load_row(from + i + v, lanes)), lanes);
      }
    }
    for (int v = 0; i < count && v < SIZE; v += W) {
      const int lanes = (int)least(W, SIZE - v), there = (int)least(lanes, count - i - v);
      store_row(to + v, there > 0 ? f.value(load_row(from + i + v, there)) : zero(), lanes);
    }
  }
}

// From an operand that is dense along the depth: `stride` is from one row of the panel to the next. A panel narrower than a
// vector is written in whole vectors, each over the end of the one before: it needs W floats beyond its own.
template <int SIZE, class Function>
VTK_INLINE void pack_along(const float* from, int64_t stride, int64_t depth, int64_t count, float* panel, Function f) {
  static_assert(SIZE <= W || SIZE % W == 0);
  for (int64_t k = 0; k < depth; k += W) {
    const int steps = (int)least(W, depth - k);
    for (int first = 0; first < SIZE; first += W) {
      V block[W];
      VTK_UNROLL for (int r = 0; r < W; ++r) {
        const bool there = first + r < SIZE && first + r < count;
        block[r] = there ? f.value(load_row(from + (first + r) * stride + k, steps)) : zero();
      }
      transpose(block);
      VTK_UNROLL for (int s = 0; s < W; ++s) if (s < steps) store(panel + (k + s) * SIZE + first, block[s]);
    }
  }
}

// Memory that will be read soon, fetched into the second-level cache one cache line a step while tiles are multiplied.
struct Ahead {
  const char* base = nullptr;
  int64_t rows = 0, stride = 0, lines = 0;  // stride in bytes; lines of each row
  int64_t row = 0, line = 0;

  struct Run {
    const char* from;
    int64_t stride;
  };
  // of `count` x `columns` floats, all there are where rows follow each other closely
  VTK_INLINE Ahead floats(const float* data, int64_t stride, int64_t count, int64_t columns) {
    constexpr int64_t kLine = 64 / sizeof(float);
    if (stride == columns) return {(const char*)data, (count * columns + kLine - 1) / kLine, 64, count > 0};
    return {(const char*)data, count, stride * (int64_t)sizeof(float), count > 0 ? (columns + kLine - 1) / kLine : 0};
  }
  bool done() const { return line >= lines; }
  // what to fetch in the next `steps` steps; `idle`, which is in the cache anyway, when all is there
  Run next(int64_t steps, const void* idle) {
    if (done()) return {(const char*)idle, 0};
    const Run run{base + row * stride + line * 64, stride};
    row += steps;
    if (row >= rows) {
      row = 0;
      ++line;
    }
    return run;
  }
};

// tile[kRows][kColumns] = a . b for two panels
VTK_NOINLINE void multiply(const float* a, const float* b, int64_t depth, float* tile, Ahead::Run ahead) {
  V sums[kRows][kVectors];
  VTK_UNROLL for (int r = 0; r < kRows; ++r) VTK_UNROLL for (int v = 0; v < kVectors; ++v) sums[r][v] = zero();
  for (int64_t k = 0; k < depth; ++k, a += kRows, b += kColumns) {
    __builtin_prefetch(ahead.from, 0, 2);
    ahead.from += ahead.stride;
    V y[kVectors];
    VTK_UNROLL for (int v = 0; v < kVectors; ++v) y[v] = load(b + v * W);
    VTK_UNROLL for (int r = 0; r < kRows; ++r) {
      const V x = set1(a[r]);
      VTK_UNROLL for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(x, y[v], sums[r][v]);
    }
  }
  VTK_UNROLL for (int r = 0; r < kRows; ++r) VTK_UNROLL for (int v = 0; v < kVectors; ++v) store(tile + r * kColumns + v * W, sums[r][v]);
}

}  // namespace vtk::VTK_ISA
