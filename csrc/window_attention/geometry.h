// Where the tokens of a window lie on the map: partition, cyclic shift, padding and shift mask as index arithmetic.
#pragma once
#include "common/carver.h"
#include "window_attention/kernel.h"

namespace vtk::VTK_ISA {

struct Axis {  // rows or columns of the padded, shifted map
  int windows;
  int32_t* source;  // of a shifted position: its place on the map, or -1 for padding
  int32_t* band;    // which side of the shift's seam, within the last window
};

struct Window {
  int64_t *qkv, *grad, *pixel;  // [tokens] offsets of its tokens into qkv and grad_out, and their pixel index; -1: padding
  int32_t* code;                // [tokens] tokens attend to each other if their codes agree
  float* penalty;               // [tokens] added to the scores of a key: -inf for padding that takes no part
  bool masked;                  // codes differ or penalties are there
  bool padded;
};

VTK_INLINE Axis make_axis(Carver& carver, int64_t size, int window, int shift, bool shift_first) {
  const int windows = (int)((size + window - 1) / window), padded = windows * window;
  Axis axis{windows, carver.take<int32_t>(padded), carver.take<int32_t>(padded)};
  if (!carver.memory) return axis;
  for (int p = 0; p < padded; ++p) {
    const int64_t shifted = p + shift;
    if (shift_first)
      axis.source[p] = p < size ? (int32_t)(shifted % size) : -1;
    else
      axis.source[p] = shifted % padded < size ? (int32_t)(shifted % padded) : -1;
    axis.band[p] = p >= padded - shift;
  }
  return axis;
}

VTK_INLINE Window make_window(Carver& carver, int tokens) {
  // vectors of codes and penalties are read past the last token
  Window window{carver.take<int64_t>(tokens), carver.take<int64_t>(tokens), carver.take<int64_t>(tokens), carver.take<int32_t>(tokens + 16),
                carver.take<float>(tokens + 16)};
  if (carver.memory) {
    memset(window.code, 0, (tokens + 16) * sizeof(int32_t));
    memset(window.penalty, 0, (tokens + 16) * sizeof(float));
  }
  return window;
}

// Fill in the window with flat index image * windows + row * columns + column.
VTK_INLINE void locate(const WindowAttention& call, const Axis& y_axis, const Axis& x_axis, int64_t index, Window& window) {
  const int64_t column = index % x_axis.windows, row = index / x_axis.windows % y_axis.windows, image = index / x_axis.windows / y_axis.windows;
  const int32_t *ys = y_axis.source + row * call.window_h, *xs = x_axis.source + column * call.window_w;
  const int32_t *y_band = y_axis.band + row * call.window_h, *x_band = x_axis.band + column * call.window_w;
  window.padded = false;
  int token = 0;
  for (int i = 0; i < call.window_h; ++i) {
    const int64_t y = ys[i];
    const int64_t qkv = image * call.qkv_stride[0] + y * call.qkv_stride[1], grad = image * call.grad_stride[0] + y * call.grad_stride[1];
    const int64_t pixel = (image * call.height + y) * call.width;
    for (int j = 0; j < call.window_w; ++j, ++token) {
      const int64_t x = xs[j];
      const bool padding = (y | x) < 0;
      window.padded |= padding;
      window.qkv[token] = padding ? -1 : qkv + x * call.qkv_stride[2];
      window.grad[token] = padding ? -1 : grad + x * call.grad_stride[2];
      window.pixel[token] = padding ? -1 : pixel + x;
      window.code[token] = 2 * y_band[i] + x_band[j];
    }
  }
  const bool hide = call.mask_padding && window.padded;
  const bool seam = (call.shift_h && row == y_axis.windows - 1) || (call.shift_w && column == x_axis.windows - 1);
  if (call.mask_padding)
    for (int t = 0; t < token; ++t) window.penalty[t] = window.pixel[t] < 0 ? -__builtin_inff() : 0.0f;
  window.masked = seam || hide;
}

// Walks the token rows of the window to come in the order of their addresses, a little between any two tiles of the
// window being computed: all heads' slices of a row come from memory together, long before the first is needed.
template <class T>
struct Prefetcher {
  const T* base = nullptr;
  const int64_t* offset = nullptr;
  int tokens = 0, token = 0;
  int slices = 0, slice = 0;  // of a row: q, k and v of the heads at hand
  int64_t slice_stride = 0;
  int lines = 0, line = 0;  // of a slice
  int lines_per_row = 0;    // to be issued with each row of scores

  inline __attribute__((always_inline)) void start(const T* base_, const int64_t* offset_, int tokens_, int slices_, int64_t slice_stride_,
                                                   int64_t slice_elements, int heads) {
    const int lines_ = (int)((slice_elements * sizeof(T) + 63) / 64);
    *this = {base_, offset_, tokens_, 0, slices_, 0, slice_stride_, lines_, 0, (slices_ * lines_ + heads - 1) / heads};
  }
  inline __attribute__((always_inline)) void step(int rows) {
    for (int left = rows * lines_per_row; left > 0 && token < tokens;) {
      const int count = left < lines - line ? left : lines - line;
      if (offset[token] >= 0) {
        const char* at = reinterpret_cast<const char*>(base + offset[token] + slice * slice_stride) + 64 * line;
        for (int l = 0; l < count; ++l) __builtin_prefetch(at + 64 * l, 0, 2);
      }
      left -= count;
      line += count;
      if (line == lines) {
        line = 0;
        if (++slice == slices) slice = 0, ++token;
      }
    }
  }
};

}  // namespace vtk::VTK_ISA
