// The two products of a layer, blocked for the caches:
//   rows times weights: a block of rows, packed, stays in the second-level cache while the panels of the weights pass by;
//   the weights' gradient: a sum over all rows, taken in segments whose number depends on the shape alone.
// Every result is summed chunk by chunk of its depth, in an order the number of threads does not change.
#pragma once
#include "common/scratch.h"
#include "linear/activations.h"
#include "linear/panels.h"

namespace vtk::VTK_ISA {

// 384 steps of 14 rows and 32 columns: a panel of either is read from the second-level cache, 70 KB of it in 10,000 cycles
constexpr int64_t kDepth = 384;
constexpr int64_t kBlockRows = 12 * kRows;

// Pieces of equal size, the last one apart
struct Cut {
  int64_t total, size, count;
  Cut(int64_t total, int64_t at_most, int64_t multiple = 1) : total(total) {
    const int64_t units = groups(total, multiple), pieces = groups(units, groups(at_most, multiple));
    size = pieces ? groups(units, pieces) * multiple : 0;
    count = size ? groups(total, size) : 0;
  }
  int64_t begin(int64_t i) const { return i * size; }
  int64_t length(int64_t i) const { return least(size, total - i * size); }
};

// The weights of a layer as panels: chunk by chunk of the depth, in each one panel after the other.
struct PackedWeight {
  Cut depth;
  int64_t columns;
  float* panels;

  PackedWeight(int64_t depth, int64_t columns) : depth(depth, kDepth), columns(columns) {}
  int64_t width() const { return groups(columns, kColumns); }
  size_t floats() const { return (size_t)(depth.total * width() * kColumns); }
  float* panel(int64_t chunk, int64_t j) const { return panels + (depth.begin(chunk) * width() + j * depth.length(chunk)) * kColumns; }

  // weight is [columns, depth] if `transposed`, else [depth, columns]
  void pack(const float* weight, bool transposed, const Parallel& parallel) const {
    auto task = [&](int64_t item) {
      const int64_t chunk = item / width(), j = item % width(), steps = depth.length(chunk), k = depth.begin(chunk), column = j * kColumns;
      const int64_t count = least(kColumns, columns - column);
      if (transposed)
        pack_along<kColumns>(weight + column * depth.total + k, depth.total, steps, count, panel(chunk, j), Identity{});
      else
        pack_across<kColumns>(weight + k * columns + column, columns, steps, count, panel(chunk, j), Identity{});
    };
    parallel.for_each(depth.count * width(), task);
  }
};

// What becomes of a product: out = activation(product + bias), or out = product * activation'(slope_at).
struct Destination {
  float* out;
  int64_t stride;  // of every tensor here
  const float* bias = nullptr;
  Activation activation = Activation::kNone;
  float* before = nullptr;          // gets product + bias
  const float* slope_at = nullptr;  // also from row 0, column 0
  bool stream = false;              // past the caches
};

// A result this large is gone from the caches before anyone reads it; written past them, its old content is not read either.
constexpr int64_t kStreamBytes = 8 << 20;
VTK_INLINE bool streams(const float* out, int64_t rows, const PackedWeight& weight) {
  const bool aligned = weight.columns % W == 0 && (uintptr_t)out % (W * sizeof(float)) == 0;
  return aligned && weight.depth.count == 1 && rows * weight.columns * (int64_t)sizeof(float) >= kStreamBytes;
}

// f(offset, lanes) for the vectors of a row: a whole tile's are known to the compiler
template <class F>
VTK_INLINE void for_vectors(int columns, F f) {
  if (__builtin_expect(columns == kColumns, 1)) {
    VTK_UNROLL for (int c = 0; c < kColumns; c += W) f(c, W);
  } else {
    for (int c = 0; c < columns; c += W) f(c, (int)least(W, columns - c));
  }
}

// The last chunk of the depth has come: `sums` are those of the chunks before, if there are any.
template <class A>
VTK_NOINLINE void finish(const Destination& d, A activation, const float* tile, const float* sums, int64_t at, int64_t column, int rows, int columns) {
  V bias[kVectors] = {};
  if (d.bias) for_vectors(columns, [&](int c, int lanes) { bias[c / W] = load_row(d.bias + column + c, lanes); });
  for (int r = 0; r < rows; ++r, tile += kColumns, at += d.stride) {
    for_vectors(columns, [&](int c, int lanes) __attribute__((always_inline)) {
      V value = load(tile + c);
      if (sums) value += load_row(sums + at + c, lanes);
      if (d.slope_at) {
        value *= activation.slope(load_row(d.slope_at + at + c, lanes));
      } else {
        value += bias[c / W];
        if (d.before) store_row(d.before + at + c, value, lanes);
        value = activation.value(value);
      }
      if (d.stream)
        stream_row(d.out + at + c, value);
      else
        store_row(d.out + at + c, value, lanes);
    });
  }
}

VTK_INLINE void add(float* to, int64_t stride, const float* tile, bool first, int rows, int columns) {
  for (int r = 0; r < rows; ++r, tile += kColumns, to += stride)
    for_vectors(columns, [&](int c, int lanes)
                             __attribute__((always_inline)) { store_row(to + c, first ? load(tile + c) : load(tile + c) + load_row(to + c, lanes), lanes); });
}

// The tile's destination comes into the cache while the tile is computed; to fetch beyond its end does no harm.
VTK_INLINE void fetch_tile(const float* to, int64_t stride) {
  for (int r = 0; r < kRows; ++r) VTK_UNROLL for (int v = 0; v < kVectors; ++v) __builtin_prefetch(to + r * stride + v * W, 1);
}

// `count` rows times the weights, into the same rows of the destination; `packed` holds packed_rows(count) floats, and
// `following` rows of x come after these.
VTK_INLINE size_t packed_rows(int64_t count) { return (size_t)(groups(count, kRows) * kRows * kDepth + W); }
template <class Function>
VTK_INLINE void rows_times_weight(Rows x, int64_t count, int64_t following, const PackedWeight& weight, const Destination& to, float* packed, Function f) {
  alignas(64) float tile[kRows * kColumns];
  const Cut& depth = weight.depth;
  float* partial = to.before ? to.before : to.out;
  for (int64_t chunk = 0; chunk < depth.count; ++chunk) {
    const int64_t steps = depth.length(chunk);
    for (int64_t i = 0; i < count; i += kRows)
      pack_along<kRows>(x.data + i * x.stride + depth.begin(chunk), x.stride, steps, least(kRows, count - i), packed + i * steps, f);
    const bool first = chunk == 0, last = chunk == depth.count - 1;
    // the next block's first chunk if this is the last one of this block
    Ahead rows_ahead = last ? Ahead::floats(x.data + count * x.stride, x.stride, following, depth.length(0))
                            : Ahead::floats(x.data + depth.begin(chunk + 1), x.stride, count, depth.length(chunk + 1));
    for (int64_t j = 0; j < weight.width(); ++j) {
      const int64_t column = j * kColumns;
      const int columns = (int)least(kColumns, weight.columns - column);
      const bool more = j + 1 < weight.width();
      Ahead panel_ahead = Ahead::floats(weight.panel(more ? chunk : last ? 0 : chunk + 1, more ? j + 1 : 0), kColumns, steps, kColumns);
      for (int64_t i = 0; i < count; i += kRows) {
        const int64_t at = i * to.stride + column;
        if (!to.stream) fetch_tile(to.out + at, to.stride);
        multiply(packed + i * steps, weight.panel(chunk, j), steps, tile, (panel_ahead.done() ? rows_ahead : panel_ahead).next(steps, tile));
        const int rows = (int)least(kRows, count - i);
        if (last)
          with_activation(to.activation, [&](auto a) { finish(to, a, tile, first ? nullptr : partial, at, column, rows, columns); });
        else
          add(partial + at, to.stride, tile, first, rows, columns);
      }
    }
  }
  if (to.stream) stream_fence();
}

// Blocks of rows, as many for each thread
VTK_INLINE Cut row_blocks(int64_t rows, const Parallel& parallel) {
  const int64_t tiles = groups(rows, kRows), blocks = groups(groups(rows, kBlockRows), parallel.threads) * parallel.threads;
  return Cut(rows, groups(tiles, blocks ? blocks : 1) * kRows, kRows);
}

// ---- the gradient of a layer's weights ------------------------------------------------------------------------------
constexpr int64_t kRowsAtOnce = 256, kGradientRows = 28 * kRows, kGradientColumns = 8 * kColumns, kSegmentRows = 1024, kSegments = 8;

// weight gradient [outputs, inputs] = grad^T f(x), bias gradient = the sum of the rows of grad
template <class Function>
struct WeightGradient {
  int64_t rows;
  Rows grad, x;
  int64_t outputs, inputs;
  LayerGradient to;
  Function f;

  // from the shape alone: how the sum is cut must not depend on the number of threads
  Cut segments() const {
    const int64_t blocks = groups(outputs, kGradientRows), wanted = groups(kSegments, blocks), worth = rows / kSegmentRows;
    const int64_t count = least(wanted, worth > 1 ? worth : 1);
    return Cut(rows, groups(rows, count));
  }
  size_t shared_floats() const { return segments().count > 1 ? (size_t)segments().count * (size_t)(outputs * inputs + outputs) : 0; }

  void run(float* shared, const Parallel& parallel) const {
    const Cut segment = segments();
    const int64_t size = outputs * inputs;
    int64_t blocks = groups(outputs, kGradientRows);
    while (blocks * segment.count % parallel.threads && blocks * kRows < outputs) ++blocks;
    const Cut block(outputs, groups(groups(outputs, kRows), blocks) * kRows, kRows);
    auto task = [&](int64_t item) {
      const int64_t s = item / block.count, b = item % block.count;
      LayerGradient part = to;
      if (segment.count > 1) part = {shared + s * (size + outputs), shared + s * (size + outputs) + size};
      sum(segment.begin(s), segment.length(s), block.begin(b), block.length(b), part);
    };
    parallel.for_each(segment.count * block.count, task);
    if (segment.count == 1) return;
    constexpr int64_t kPiece = 4096;
    auto add_up = [&](int64_t item) {
      const int64_t end = least(size + outputs, (item + 1) * kPiece);
      for (int64_t i = item * kPiece; i < end; ++i) {
        float total = shared[i];
        for (int64_t s = 1; s < segment.count; ++s) total += shared[s * (size + outputs) + i];
        if (i < size)
          to.weight[i] = total;
        else if (to.bias)
          to.bias[i - size] = total;
      }
    };
    parallel.for_each(groups(size + outputs, kPiece), add_up);
  }

  // Rows [first, first + length) only, and outputs [begin, begin + count).
  void sum(int64_t first, int64_t length, int64_t begin, int64_t count, const LayerGradient& part) const {
    alignas(64) float tile[kRows * kColumns];
    const int64_t tiles = groups(count, kRows);
    float* a = (float*)thread_scratch(sizeof(float) * (size_t)(kRowsAtOnce * (tiles * kRows + kGradientColumns) + 2 * W));
    float* b = a + groups(kRowsAtOnce * tiles * kRows, W) * W;
    const Cut chunks(length, kRowsAtOnce);
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
      const int64_t row = first + chunks.begin(chunk), steps = chunks.length(chunk), coming = chunk + 1 < chunks.count ? chunks.length(chunk + 1) : 0;
      pack_across<kRows>(grad.data + row * grad.stride + begin, grad.stride, steps, count, a, Identity{});
      if (part.bias)
        for (int64_t i = 0; i < count; i += kRows) add_bias(a + i * steps, steps, part.bias + begin + i, (int)least(kRows, count - i), chunk == 0);
      Ahead grad_ahead = Ahead::floats(grad.data + (row + steps) * grad.stride + begin, grad.stride, coming, count);
      for (int64_t at = 0; at < inputs; at += kGradientColumns) {
        const int64_t width = least(kGradientColumns, inputs - at);
        // the next columns of these rows, or the first ones of the next
        const int64_t then = at + width < inputs ? at + width : 0;
        Ahead x_ahead =
            Ahead::floats(x.data + (then ? row : row + steps) * x.stride + then, x.stride, then ? steps : coming, least(kGradientColumns, inputs - then));
        pack_across<kColumns>(x.data + row * x.stride + at, x.stride, steps, width, b, f);
        for (int64_t j = 0; j < width; j += kColumns)
          for (int64_t i = 0; i < count; i += kRows) {
            float* destination = part.weight + (begin + i) * inputs + at + j;
            fetch_tile(destination, inputs);
            Ahead& ahead = x_ahead.done() ? grad_ahead : x_ahead;
            multiply(a + i * steps, b + j * steps, steps, tile, ahead.next(steps, tile));
            add(destination, inputs, tile, chunk == 0, (int)least(kRows, count - i), (int)least(kColumns, width - j));
          }
      }
    }
  }

  static void add_bias(const float* panel, int64_t steps, float* to, int count, bool first) {
    constexpr int kChains = 4;
    V chains[kChains];
    for (V& chain : chains) chain = zero();
    for (int64_t k = 0; k < steps; ++k) chains[k % kChains] += load_row(panel + k * kRows, kRows);
    const V total = (chains[0] + chains[1]) + (chains[2] + chains[3]);
    store_row(to, first ? total : total + load_row(to, count), count);
  }
};

}  // namespace vtk::VTK_ISA
