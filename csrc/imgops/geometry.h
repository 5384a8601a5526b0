// Affine transformations. Coordinates and weights are doubles in Pillow's order of operations, for its very pixels.
#pragma once
#include <charconv>
#include <cmath>

#include "common/carver.h"
#include "imgops/point.h"

namespace vtk::VTK_ISA {
using imgops::Filter;
using imgops::Op;
using imgops::Step;

// the pixels a bicubic sample may need beyond the edge
constexpr int kBorder = 2;
// of a Gaussian blur; the caller checks it
constexpr int kMostRadius = 1000;

// Memory of the operations on images of one size.
struct Work {
  // four bytes to a pixel, the edges repeated; also a plain copy where that is all an operation needs
  uint8_t* padded;
  int64_t stride;
  double *xs, *ys;
  int32_t* offsets;
  // two rows with the reach of a blur at both ends, and a sum for each value of a row
  uint8_t *line, *other_line;
  uint32_t* sums;

  Work(Carver& carver, int height, int width) : stride(4 * (width + 2 * kBorder)) {
    const int longer = std::max(height, width);
    padded = carver.take<uint8_t>((size_t)stride * (height + 2 * kBorder) + 64);
    xs = carver.take<double>(longer);
    ys = carver.take<double>(longer);
    offsets = carver.take<int32_t>(longer);
    line = carver.take<uint8_t>(3 * ((size_t)width + 2 * kMostRadius + 4));
    other_line = carver.take<uint8_t>(3 * ((size_t)width + 2 * kMostRadius + 4));
    sums = carver.take<uint32_t>(3 * (size_t)width);
  }
};

static Image plain_copy(const Image& in, const Work& work) {
  const Image copy{work.padded, in.row_bytes(), in.height, in.width, in.channels};
  copy_image(in, copy);
  return copy;
}

static void fill_pixels(uint8_t* to, int64_t pixels, int channels, const uint8_t* fill) {
  if (channels == 1 || (fill[0] == fill[1] && fill[1] == fill[2])) {
    std::memset(to, fill[0], pixels * channels);
    return;
  }
  for (int64_t x = 0; x < pixels; ++x) std::memcpy(to + 3 * x, fill, 3);
}

static void pad(const Image& in, const Work& work) {
  for (int y = 0; y < in.height; ++y) {
    const uint8_t* from = in.at(y);
    uint32_t* to = (uint32_t*)(work.padded + (y + kBorder) * work.stride) + kBorder;
    const int last = in.width - 1;
    if (in.channels == 1)
      for (int x = 0; x <= last; ++x) to[x] = from[x] * 0x01010101u;
    else {
      // the fourth byte is the next pixel's, and nobody's in the end
      for (int x = 0; x < last; ++x) std::memcpy(to + x, from + 3 * x, 4);
      to[last] = from[3 * last] | from[3 * last + 1] << 8 | from[3 * last + 2] << 16;
    }
    for (int b = 1; b <= kBorder; ++b) {
      to[-b] = to[0];
      to[last + b] = to[last];
    }
  }
  for (int b = 0; b < kBorder; ++b) {
    std::memcpy(work.padded + b * work.stride, work.padded + kBorder * work.stride, work.stride);
    std::memcpy(work.padded + (in.height + kBorder + b) * work.stride, work.padded + (in.height + kBorder - 1) * work.stride, work.stride);
  }
}

// ---- one pixel, all channels at once -----------------------------------------------------------------------------------
typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef double Doubles4 __attribute__((vector_size(32)));

// The compilers' own conversions of four bytes go one by one.
VTK_INLINE Ints4 load_pixel(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, 4);
#if defined(__AVX2__)
  return (Ints4)_mm_cvtepu8_epi32(_mm_cvtsi32_si128((int)word));
#else
  return Ints4{(int32_t)(word & 255), (int32_t)(word >> 8 & 255), (int32_t)(word >> 16 & 255), (int32_t)(word >> 24)};
#endif
}
VTK_INLINE Doubles4 doubles(Ints4 v) {
#if defined(__AVX2__)
  return (Doubles4)_mm256_cvtepi32_pd((__m128i)v);
#else
  return __builtin_convertvector(v, Doubles4);
#endif
}
// of values within a byte, rounded towards 0
VTK_INLINE uint32_t bytes(Doubles4 v) {
#if defined(__AVX2__)
  const __m128i lowest = _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  return (uint32_t)_mm_cvtsi128_si32(_mm_shuffle_epi8(_mm256_cvttpd_epi32((__m256d)v), lowest));
#else
  const Ints4 i = __builtin_convertvector(v, Ints4);
  return (uint32_t)i[0] | (uint32_t)i[1] << 8 | (uint32_t)i[2] << 16 | (uint32_t)i[3] << 24;
#endif
}

VTK_INLINE Doubles4 linear(Ints4 a, Ints4 b, double t) { return doubles(a) + doubles(b - a) * t; }
VTK_INLINE Doubles4 linear(Doubles4 a, Doubles4 b, double t) { return a + (b - a) * t; }

template <class T>
VTK_INLINE Doubles4 cubic(T a, T b, T c, T d, double t) {
  const auto wide = [](T v) {
    if constexpr (std::is_same_v<T, Ints4>)
      return doubles(v);
    else
      return v;
  };
  const T p2 = -a + c, p3 = 2 * (a - b) + c - d, p4 = -a + b - c + d;
  return wide(b) + t * (wide(p2) + t * (wide(p3) + t * wide(p4)));
}

VTK_INLINE Doubles4 cubic_row(const uint8_t* p, double t) { return cubic(load_pixel(p - 4), load_pixel(p), load_pixel(p + 4), load_pixel(p + 8), t); }

VTK_INLINE Doubles4 within_byte(Doubles4 v) {
#if defined(__AVX2__)
  return (Doubles4)_mm256_min_pd(_mm256_max_pd((__m256d)v, _mm256_setzero_pd()), _mm256_set1_pd(255.0));
#else
  for (int c = 0; c < 4; ++c) v[c] = std::min(std::max(v[c], 0.0), 255.0);
  return v;
#endif
}

// the directions in which a sample lies between pixels: elsewhere interpolation would give the pixel itself
enum class Along { kX, kY, kBoth };

template <bool smoother, Along along>
VTK_INLINE uint32_t sample(const uint8_t* p, int64_t stride, double dx, double dy) {
  if constexpr (smoother) {
    if constexpr (along == Along::kX) return bytes(within_byte(cubic_row(p, dx)));
    if constexpr (along == Along::kY)
      return bytes(within_byte(cubic(load_pixel(p - stride), load_pixel(p), load_pixel(p + stride), load_pixel(p + 2 * stride), dy)));
    return bytes(within_byte(cubic(cubic_row(p - stride, dx), cubic_row(p, dx), cubic_row(p + stride, dx), cubic_row(p + 2 * stride, dx), dy)));
  }
  if constexpr (along == Along::kX) return bytes(linear(load_pixel(p), load_pixel(p + 4), dx));
  if constexpr (along == Along::kY) return bytes(linear(load_pixel(p), load_pixel(p + stride), dy));
  return bytes(linear(linear(load_pixel(p), load_pixel(p + 4), dx), linear(load_pixel(p + stride), load_pixel(p + stride + 4), dx), dy));
}

template <bool smoother, Along along>
static void sample_row(const Work& work, uint8_t* to, int channels, int begin, int end) {
  const int64_t stride = work.stride;
  const uint8_t* origin = work.padded + kBorder * stride + 4 * kBorder;
  const int32_t* offsets = work.offsets;
  const double *xs = work.xs, *ys = work.ys;
  const auto at = [=](int x) { return sample<smoother, along>(origin + offsets[x], stride, xs[x], ys[x]); };
  if (channels == 1) {
    for (int x = begin; x < end; ++x) to[x] = (uint8_t)at(x);
    return;
  }
  for (int x = begin; x < end - 1; ++x) {
    const uint32_t pixel = at(x);
    // the byte too many is overwritten by the next pixel
    std::memcpy(to + 3 * x, &pixel, 4);
  }
  if (begin >= end) return;
  const uint32_t last = at(end - 1);
  std::memcpy(to + 3 * (end - 1), &last, 3);
}

template <bool smoother>
VTK_INLINE void sample_row(const Work& work, uint8_t* to, int channels, int begin, int end, bool between_columns, bool between_rows) {
  if (!between_rows) return sample_row<smoother, Along::kX>(work, to, channels, begin, end);
  if (!between_columns) return sample_row<smoother, Along::kY>(work, to, channels, begin, end);
  sample_row<smoother, Along::kBoth>(work, to, channels, begin, end);
}

// the whole part, rounded down, of a coordinate that is then left with its fraction
VTK_INLINE int32_t split(double& coordinate) {
  int32_t whole = (int32_t)coordinate;
  whole -= coordinate < whole;
  coordinate -= whole;
  return whole;
}

static void affine_smooth(const Image& in, const Image& out, const double* a, bool smoother, const uint8_t* fill, const Work& work) {
  const int height = in.height, width = in.width, channels = in.channels;
  pad(in, work);
  double* __restrict xs = work.xs, * __restrict ys = work.ys;
  int32_t* __restrict offsets = work.offsets;
  const int32_t stride = (int32_t)work.stride;
  const double ax = a[0], ay = a[3], a2 = a[2], a5 = a[5];
  for (int y = 0; y < height; ++y) {
    const double yc = y + 0.5, down_x = a[1] * yc, down_y = a[4] * yc;
    for (int x = 0; x < width; ++x) {
      const double xc = x + 0.5;
      xs[x] = ax * xc + down_x + a2;
      ys[x] = ay * xc + down_y + a5;
    }
    // coordinates are monotonic along a row, rounding included: what lies inside is one interval
    const auto inside = [=](int x) { return xs[x] >= 0 && xs[x] < width && ys[x] >= 0 && ys[x] < height; };
    int begin = 0, end = width;
    while (begin < end && !inside(begin)) ++begin;
    while (end > begin && !inside(end - 1)) --end;
    int64_t any_dx = 0, any_dy = 0;
    for (int x = begin; x < end; ++x) {
      double u = xs[x] - 0.5, v = ys[x] - 0.5;
      const int32_t column = split(u), row = split(v);
      xs[x] = u;
      ys[x] = v;
      any_dx |= u != 0 ? 1 : 0;
      any_dy |= v != 0 ? 1 : 0;
      offsets[x] = row * stride + 4 * column;
    }
    uint8_t* to = out.at(y);
    fill_pixels(to, begin, channels, fill);
    if (smoother)
      sample_row<true>(work, to, channels, begin, end, any_dx != 0, any_dy != 0);
    else
      sample_row<false>(work, to, channels, begin, end, any_dx != 0, any_dy != 0);
    fill_pixels(to + (int64_t)end * channels, width - end, channels, fill);
  }
}

// The pixel a coordinate lies in; -1 for all below 0.
VTK_INLINE int nearest(double coordinate) { return coordinate < 0 ? -1 : coordinate < 2147483647.0 ? (int)coordinate : 2147483647; }

struct Position {
  int column, row;
};

// f(x, y of out) gives the position in `in`
template <int channels, class F>
VTK_INLINE void pick_pixels_of(const Image& in, const Image& out, const uint8_t* fill, F f) {
  for (int y = 0; y < out.height; ++y) {
    uint8_t* to = out.at(y);
    for (int x = 0; x < out.width; ++x) {
      const Position from = f(x, y);
      const bool inside = (uint32_t)from.column < (uint32_t)in.width && (uint32_t)from.row < (uint32_t)in.height;
      std::memcpy(to + (int64_t)x * channels, inside ? in.at(from.row) + (int64_t)from.column * channels : fill, channels);
    }
  }
}

template <class F>
VTK_INLINE void pick_pixels(const Image& in, const Image& out, const uint8_t* fill, F f) {
  if (in.channels == 1)
    pick_pixels_of<1>(in, out, fill, f);
  else
    pick_pixels_of<3>(in, out, fill, f);
}

// `columns` and `rows` hold a number for each of out's; sums, not products, as rounding shows in the pixels
static void scale_nearest(const Image& in, const Image& out, double scale_x, double from_x, double scale_y, double from_y, const uint8_t* fill, int* columns,
                          int* rows) {
  double x = from_x + scale_x * 0.5, y = from_y + scale_y * 0.5;
  for (int i = 0; i < out.width; ++i, x += scale_x) columns[i] = nearest(x);
  for (int i = 0; i < out.height; ++i, y += scale_y) rows[i] = nearest(y);
  pick_pixels(in, out, fill, [&](int i, int j) { return Position{columns[i], rows[j]}; });
}

static void affine_nearest(const Image& in, const Image& out, const double* a, const uint8_t* fill, const Work& work) {
  if (a[1] == 0 && a[3] == 0) return scale_nearest(in, out, a[0], a[2], a[4], a[5], fill, (int*)work.xs, (int*)work.ys);
  const auto fits = [&](int x, int y) { return std::fabs(x * a[0] + y * a[1] + a[2]) < 32768.0 && std::fabs(x * a[3] + y * a[4] + a[5]) < 32768.0; };
  if (fits(0, 0) && fits(in.width, in.height) && fits(0, in.height) && fits(in.width, 0)) {
    const auto fixed = [](double v) { return (int)std::floor(v * 65536.0 + 0.5); };
    const int a0 = fixed(a[0]), a1 = fixed(a[1]), a2 = fixed(a[2] + a[0] * 0.5 + a[1] * 0.5);
    const int a3 = fixed(a[3]), a4 = fixed(a[4]), a5 = fixed(a[5] + a[3] * 0.5 + a[4] * 0.5);
    return pick_pixels(in, out, fill, [=](int x, int y) { return Position{(a2 + y * a1 + x * a0) >> 16, (a5 + y * a4 + x * a3) >> 16}; });
  }
  double row_x = a[2] + a[1] * 0.5 + a[0] * 0.5, row_y = a[5] + a[4] * 0.5 + a[3] * 0.5, u = 0, v = 0;
  pick_pixels(in, out, fill, [&](int x, int) {
    if (x == 0) {
      u = row_x;
      v = row_y;
      row_x += a[1];
      row_y += a[4];
    }
    const Position found{nearest(u), nearest(v)};
    u += a[0];
    v += a[3];
    return found;
  });
}

static void translate_whole(const Image& in, const Image& out, double dx, double dy, const uint8_t* fill) {
  const int width = in.width, height = in.height, channels = in.channels;
  const int right = (int)std::clamp(dx, (double)-width, (double)width), down = (int)std::clamp(dy, (double)-height, (double)height);
  const int begin = std::max(0, -right), end = std::min(width, width - right);
  for (int y = 0; y < height; ++y) {
    uint8_t* to = out.at(y);
    if (y + down < 0 || y + down >= height || begin >= end) {
      fill_pixels(to, width, channels, fill);
      continue;
    }
    fill_pixels(to, begin, channels, fill);
    std::memcpy(to + begin * channels, in.at(y + down) + (begin + right) * channels, (size_t)(end - begin) * channels);
    fill_pixels(to + end * channels, width - end, channels, fill);
  }
}

static void affine(const Image& given, const Image& out, const double* a, Filter filter, const uint8_t* fill, const Work& work) {
  const bool whole = a[0] == 1 && a[1] == 0 && a[3] == 0 && a[4] == 1 && a[2] == std::floor(a[2]) && a[5] == std::floor(a[5]);
  const bool smooth = filter != Filter::kNearest && !whole;
  const Image in = given.pixels == out.pixels && !smooth ? plain_copy(given, work) : given;
  if (whole) return translate_whole(in, out, a[2], a[5], fill);
  if (smooth) return affine_smooth(in, out, a, filter == Filter::kBicubic, fill, work);
  affine_nearest(in, out, a, fill, work);
}

// Decimal digits, as Pillow rounds sine and cosine.
static double round_15(double v) {
  char digits[32];
  const auto written = std::to_chars(digits, digits + sizeof digits, v, std::chars_format::fixed, 15);
  double rounded = 0;
  std::from_chars(digits, written.ptr, rounded);
  return rounded;
}

static void rotate(const Image& given, const Image& out, double degrees, Filter filter, const uint8_t* fill, const Work& work) {
  const int width = given.width, height = given.height;
  double angle = std::fmod(degrees, 360.0);
  if (angle < 0) angle += 360.0;
  if (angle == 0) return copy_image(given, out);
  if (angle == 180 || ((angle == 90 || angle == 270) && width == height)) {
    const Image in = given.pixels == out.pixels ? plain_copy(given, work) : given;
    return pick_pixels(in, out, fill, [=](int x, int y) {
      if (angle == 180) return Position{width - 1 - x, height - 1 - y};
      return angle == 90 ? Position{width - 1 - y, x} : Position{y, height - 1 - x};
    });
  }
  const double radians = -(angle * (M_PI / 180.0)), cx = width / 2.0, cy = height / 2.0;
  double a[6] = {round_15(std::cos(radians)), round_15(std::sin(radians)), 0.0, round_15(-std::sin(radians)), round_15(std::cos(radians)), 0.0};
  a[2] = a[0] * -cx + a[1] * -cy + 0.0 + cx;
  a[5] = a[3] * -cx + a[4] * -cy + 0.0 + cy;
  affine(given, out, a, filter, fill, work);
}

static void cutout(const Image& in, const Image& out, const double* box, const uint8_t* fill) {
  copy_image(in, out);
  const int left = (int)std::clamp(box[0], 0.0, (double)in.width), right = (int)std::clamp(box[2], (double)left, (double)in.width);
  const int top = (int)std::clamp(box[1], 0.0, (double)in.height), bottom = (int)std::clamp(box[3], (double)top, (double)in.height);
  for (int y = top; y < bottom; ++y) fill_pixels(out.at(y) + (int64_t)left * in.channels, right - left, in.channels, fill);
}

static void flip(const Image& given, const Image& out, const Work& work) {
  const Image in = given.pixels == out.pixels ? plain_copy(given, work) : given;
  pick_pixels(in, out, nullptr, [=](int x, int y) { return Position{in.width - 1 - x, y}; });
}

}  // namespace vtk::VTK_ISA
