// Resizing and blurring: weighted sums along rows and columns, in fixed point as Pillow has it.
#pragma once
#include "imgops/geometry.h"

namespace vtk::VTK_ISA {

// ---- resizing -----------------------------------------------------------------------------------------------------------
VTK_INLINE double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= M_PI;
  return std::sin(x) / x;
}

static double filter_weight(Filter filter, double x) {
  if (filter == Filter::kBox) return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
  if (filter == Filter::kLanczos) return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
  x = std::fabs(x);
  if (filter == Filter::kBilinear) return x < 1.0 ? 1.0 - x : 0.0;
  if (filter == Filter::kHamming) {
    if (x == 0.0 || x >= 1.0) return x == 0.0 ? 1.0 : 0.0;
    x *= M_PI;
    return std::sin(x) / x * (0.54f + 0.46f * std::cos(x));
  }
  constexpr double a = -0.5;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

static double filter_support(Filter filter) {
  switch (filter) {
    case Filter::kBox: return 0.5;
    case Filter::kBicubic: return 2.0;
    case Filter::kLanczos: return 3.0;
    default: return 1.0;
  }
}

// Of each output position the inputs it sums up, and their weights in 22 fractional bits.
struct Weights {
  static constexpr int kBits = 22;
  int taps;
  int32_t *first, *count, *values;
  double* exact;

  Weights(Carver& carver, int from, int to, Filter filter) {
    taps = (int)std::ceil(filter_support(filter) * std::max((double)from / to, 1.0)) * 2 + 1;
    first = carver.take<int32_t>(to);
    count = carver.take<int32_t>(to);
    values = carver.take<int32_t>((size_t)to * taps);
    exact = carver.take<double>(taps);
  }

  void compute(int from, int to, Filter filter) {
    const double scale = (double)from / to, stretch = std::max(scale, 1.0), support = filter_support(filter) * stretch, shrink = 1.0 / stretch;
    for (int i = 0; i < to; ++i) {
      const double center = (i + 0.5) * scale;
      const int begin = std::max((int)(center - support + 0.5), 0), end = std::min((int)(center + support + 0.5), from);
      double sum = 0.0;
      for (int j = begin; j < end; ++j) sum += exact[j - begin] = filter_weight(filter, (j - center + 0.5) * shrink);
      for (int j = 0; j < end - begin; ++j) {
        const double weight = (sum != 0.0 ? exact[j] / sum : exact[j]) * (1 << kBits);
        values[(size_t)i * taps + j] = (int)(weight < 0 ? weight - 0.5 : weight + 0.5);
      }
      first[i] = begin;
      count[i] = end - begin;
    }
  }
};

VTK_INLINE uint8_t clip(int32_t sum) { return (uint8_t)std::clamp(sum >> Weights::kBits, 0, 255); }

// `line` holds a row and four bytes more, as a pixel is loaded as four
static void resample_row(const uint8_t* line, uint8_t* to, int width, int channels, const Weights& weights) {
  for (int x = 0; x < width; ++x) {
    const int32_t* weight = weights.values + (size_t)x * weights.taps;
    const uint8_t* from = line + (int64_t)weights.first[x] * channels;
    if (channels == 1) {
      int32_t sum = 1 << (Weights::kBits - 1);
      for (int j = 0; j < weights.count[x]; ++j) sum += from[j] * weight[j];
      to[x] = clip(sum);
      continue;
    }
    Ints4 sum = (1 << (Weights::kBits - 1)) - Ints4{};
    for (int j = 0; j < weights.count[x]; ++j) sum += load_pixel(from + 3 * j) * weight[j];
    for (int c = 0; c < 3; ++c) to[3 * x + c] = clip(sum[c]);
  }
}

static void resample_across(const Image& in, const Image& out, const Weights& weights, uint8_t* line) {
  for (int y = 0; y < in.height; ++y) {
    std::memcpy(line, in.at(y), in.row_bytes());
    resample_row(line, out.at(y), out.width, in.channels, weights);
  }
}

static void resample_down(const Image& in, const Image& out, const Weights& weights, int32_t* sums) {
  const int64_t bytes = out.row_bytes();
  for (int y = 0; y < out.height; ++y) {
    for (int64_t i = 0; i < bytes; ++i) sums[i] = 1 << (Weights::kBits - 1);
    for (int j = 0; j < weights.count[y]; ++j) {
      const uint8_t* row = in.at(weights.first[y] + j);
      const int32_t weight = weights.values[(size_t)y * weights.taps + j];
      for (int64_t i = 0; i < bytes; ++i) sums[i] += row[i] * weight;
    }
    uint8_t* to = out.at(y);
    for (int64_t i = 0; i < bytes; ++i) to[i] = clip(sums[i]);
  }
}

static void resize(const Image& in, const Image& out, Filter filter, Carver& carver) {
  const bool across = in.width != out.width, down = in.height != out.height;
  // Pillow's rule: each pass rounds, so that their order shows in the pixels
  const bool down_first = down && in.height - out.height > std::max(0, 2 * (in.width - out.width));
  int* columns = carver.take<int>(out.width);
  int* rows = carver.take<int>(out.height);
  Weights horizontal(carver, in.width, out.width, filter), vertical(carver, in.height, out.height, filter);
  uint8_t* line = carver.take<uint8_t>(in.row_bytes() + 4);
  int32_t* sums = carver.take<int32_t>(std::max(in.row_bytes(), out.row_bytes()));
  const int half_height = down_first ? out.height : in.height, half_width = down_first ? in.width : out.width;
  const int64_t half_row = (int64_t)half_width * in.channels;
  const Image half{carver.take<uint8_t>(half_row * half_height), half_row, half_height, half_width, in.channels};
  if (!carver.memory) return;
  if (!across && !down) return copy_image(in, out);
  if (filter == Filter::kNearest) {
    const uint8_t black[3] = {0, 0, 0};
    return scale_nearest(in, out, (double)in.width / out.width, 0.0, (double)in.height / out.height, 0.0, black, columns, rows);
  }
  if (across) horizontal.compute(in.width, out.width, filter);
  if (down) vertical.compute(in.height, out.height, filter);
  if (!down) return resample_across(in, out, horizontal, line);
  if (!across) return resample_down(in, out, vertical, sums);
  if (down_first) {
    resample_down(in, half, vertical, sums);
    resample_across(half, out, horizontal, line);
  } else {
    resample_across(in, half, horizontal, line);
    resample_down(half, out, vertical, sums);
  }
}

// ---- blurring -----------------------------------------------------------------------------------------------------------
// A running mean whose outermost pixels count in part.
struct Box {
  int radius;
  uint32_t inner, outer;

  // the box that, applied three times, comes close to a Gaussian
  explicit Box(float gaussian) {
    const float variance = gaussian * gaussian / 3;
    const float length = (float)std::sqrt(12.0 * variance + 1.0), whole = (float)std::floor((length - 1.0) / 2.0);
    float part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance);
    part /= 6 * (variance - (whole + 1) * (whole + 1));
    const float extent = whole + part;
    radius = (int)extent;
    inner = (uint32_t)((1 << 24) / (extent * 2 + 1));
    outer = ((1 << 24) - (radius * 2 + 1) * inner) / 2;
  }

  uint8_t mean(uint32_t sum, uint32_t outermost) const { return (uint8_t)((sum * inner + outermost * outer + (1 << 23)) >> 24); }

  // along a line that can be read `radius` + 1 pixels beyond both its ends
  template <int channels>
  void across(const uint8_t* from, uint8_t* to, int length) const {
    const int64_t reach = (int64_t)radius * channels;
    uint32_t sum[channels] = {};
    for (int64_t i = -reach - channels; i < reach; i += channels)
      for (int c = 0; c < channels; ++c) sum[c] += from[i + c];
    for (int64_t i = 0; i < (int64_t)length * channels; i += channels)
      for (int c = 0; c < channels; ++c) {
        const uint8_t *leaving = from + i + c - reach - channels, *entering = from + i + c + reach;
        sum[c] += *entering - *leaving;
        to[i + c] = mean(sum[c], *leaving + entering[channels]);
      }
  }

  // along all columns; the edges repeat
  void down(const Image& from, const Image& to, uint32_t* __restrict sums) const {
    const int64_t bytes = from.row_bytes();
    const auto row = [&](int y) { return from.at(std::clamp(y, 0, from.height - 1)); };
    for (int64_t i = 0; i < bytes; ++i) sums[i] = 0;
    for (int y = -radius - 1; y < radius; ++y) {
      const uint8_t* values = row(y);
      for (int64_t i = 0; i < bytes; ++i) sums[i] += values[i];
    }
    for (int y = 0; y < from.height; ++y) {
      const uint8_t *leaving = row(y - radius - 1), *entering = row(y + radius), *next = row(y + radius + 1);
      uint8_t* __restrict result = to.at(y);
      for (int64_t i = 0; i < bytes; ++i) {
        sums[i] += entering[i] - leaving[i];
        result[i] = mean(sums[i], leaving[i] + next[i]);
      }
    }
  }
};

template <int channels>
static void blur_rows(const Image& in, const Image& out, const Box& box, const Work& work) {
  const int64_t margin = (int64_t)(box.radius + 1) * channels, bytes = in.row_bytes();
  const auto repeat_edges = [=](uint8_t* line) {
    for (int64_t i = 0; i < margin; ++i) {
      line[i] = line[margin + i % channels];
      line[margin + bytes + i] = line[margin + bytes - channels + i % channels];
    }
  };
  for (int y = 0; y < in.height; ++y) {
    std::memcpy(work.line + margin, in.at(y), bytes);
    repeat_edges(work.line);
    box.across<channels>(work.line + margin, work.other_line + margin, in.width);
    repeat_edges(work.other_line);
    box.across<channels>(work.other_line + margin, work.line + margin, in.width);
    repeat_edges(work.line);
    box.across<channels>(work.line + margin, out.at(y), in.width);
  }
}

static void gaussian_blur(const Image& in, const Image& out, float radius, const Work& work) {
  if (radius == 0) return copy_image(in, out);
  const Box box(radius);
  const Image other{work.padded, in.row_bytes(), in.height, in.width, in.channels};
  if (in.channels == 1)
    blur_rows<1>(in, other, box, work);
  else
    blur_rows<3>(in, other, box, work);
  box.down(other, out, work.sums);
  box.down(out, other, work.sums);
  box.down(other, out, work.sums);
}

}  // namespace vtk::VTK_ISA
