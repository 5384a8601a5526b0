// Where the tokens of a window lie on the map, and which of them see each other. The op's README derives it.
#pragma once
#include <cstdint>

namespace vtk {

// In the place of a row of the map
enum Absent : int { kPadding = -1, kBeyondWindow = -2 };
// Beside the four regions that a shift makes of a window: what takes no part as a key
constexpr int kIgnored = 4;

struct Axis {
  int length, windows, window, shift;
  // the shift is cyclic on the map's own axis (shift first) or on the padded one
  int period, roll;

  Axis(int64_t length, int64_t window, int64_t shift, bool shift_first)
      : length(static_cast<int>(length)),
        windows(static_cast<int>((length + window - 1) / window)),
        window(static_cast<int>(window)),
        shift(static_cast<int>(shift)),
        period(shift_first ? static_cast<int>(length) : windows * static_cast<int>(window)),
        roll(static_cast<int>(shift % period)) {}

  __device__ bool padded() const { return windows * window != length; }

  // -1 where there is only padding
  __device__ int place(int index, int offset) const {
    const int position = index * window + offset;
    const int rolled = position + roll >= period ? position + roll - period : position + roll;
    return position < period && rolled < length ? rolled : -1;
  }
  __device__ bool has_seam(int index) const { return shift > 0 && index == windows - 1; }
  __device__ bool beyond_seam(int index, int offset) const { return index == windows - 1 && offset >= window - shift; }
};

struct Geometry {
  Axis y, x;
  bool ignore_padding;

  __host__ __device__ int tokens() const { return y.window * x.window; }
  __host__ __device__ int table_rows() const { return (2 * y.window - 1) * (2 * x.window - 1); }
  // a query's place less a key's, plus the center, is the row of the bias table
  __device__ int table_place(int token) const { return token / x.window * (2 * x.window - 1) + token % x.window; }
  __device__ int table_center() const { return table_place(tokens() - 1); }
};

struct Window {
  int image, row, column;

  __device__ Window(const Geometry& geometry, int item) {
    const int windows = geometry.y.windows * geometry.x.windows;
    image = item / windows;
    row = item % windows / geometry.x.windows;
    column = item % windows % geometry.x.windows;
  }
};

struct Token {
  // of the rows of all maps, or `Absent`
  int index, region;
};

__device__ inline Token find_token(const Geometry& geometry, const Window& window, int token) {
  if (token >= geometry.tokens()) return {kBeyondWindow, kIgnored};
  const int offset_y = token / geometry.x.window, offset_x = token % geometry.x.window;
  const int y = geometry.y.place(window.row, offset_y), x = geometry.x.place(window.column, offset_x);
  const int region = geometry.y.beyond_seam(window.row, offset_y) + 2 * geometry.x.beyond_seam(window.column, offset_x);
  if (y < 0 || x < 0) return {kPadding, geometry.ignore_padding ? kIgnored : region};
  // maps of 2^31 tokens fill no GPU's memory
  return {(window.image * geometry.y.length + y) * geometry.x.length + x, region};
}

}  // namespace vtk
