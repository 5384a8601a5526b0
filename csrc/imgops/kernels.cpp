// The image operations for one instruction set: a list of steps, a whole AugMix, resizing, normalisation.
#include "imgops/resample.h"

namespace vtk::VTK_ISA {
namespace {

using imgops::Mix;
using imgops::Planes;

void run_step(const Image& in, const Image& out, const Step& step, const Work& work) {
  const double value = step.values[0];
  const float factor = (float)value;
  const auto transform = [&](double a, double b, double c, double d, double e, double f) {
    const double matrix[6] = {a, b, c, d, e, f};
    affine(in, out, matrix, step.filter, step.fill, work);
  };
  switch (step.op) {
    case Op::kAutocontrast: return autocontrast(in, out);
    case Op::kEqualize: return equalize(in, out);
    case Op::kInvert: return each_byte(in, out, [](uint8_t v) { return (uint8_t)(255 - v); });
    case Op::kPosterize: {
      const uint8_t mask = (uint8_t)(0xff00 >> (int)value);
      return each_byte(in, out, [=](uint8_t v) { return (uint8_t)(v & mask); });
    }
    case Op::kSolarize: {
      const int threshold = (int)std::ceil(std::clamp(value, -1.0, 256.0));
      return each_byte(in, out, [=](uint8_t v) { return (uint8_t)(v < threshold ? v : 255 - v); });
    }
    case Op::kSolarizeAdd: {
      const int addend = (int)value, threshold = (int)std::ceil(std::clamp(step.values[1], -1.0, 256.0));
      return each_byte(in, out, [=](uint8_t v) { return (uint8_t)(v < threshold ? std::clamp(v + addend, 0, 255) : v); });
    }
    case Op::kColor: return color(in, out, factor);
    case Op::kContrast: return contrast(in, out, factor);
    case Op::kBrightness: return each_byte(in, out, [=](uint8_t v) { return blend(0, v, factor); });
    case Op::kSharpness: return sharpness(in, out, factor, work.padded);
    case Op::kRotate: return rotate(in, out, value, step.filter, step.fill, work);
    case Op::kShearX: return transform(1, value, 0, 0, 1, 0);
    case Op::kShearY: return transform(1, 0, 0, value, 1, 0);
    case Op::kTranslateX: return transform(1, 0, value, 0, 1, 0);
    case Op::kTranslateY: return transform(1, 0, 0, 0, 1, value);
    case Op::kAffine: return affine(in, out, step.values, step.filter, step.fill, work);
    case Op::kCutout: return cutout(in, out, step.values, step.fill);
    case Op::kFlip: return flip(in, out, work);
    case Op::kGaussianBlur: return gaussian_blur(in, out, factor, work);
  }
}

void run_chain(const Image& in, const Image& out, const Step* steps, int count, const Work& work) {
  if (count == 0) copy_image(in, out);
  for (int i = 0; i < count; ++i) run_step(i ? out : in, out, steps[i], work);
}

// channel c of an interleaved row: f(value) to a plane
template <class T, class F>
VTK_INLINE void to_planes(const T* from, int width, int channels, float* const* planes, F f) {
  if (channels == 1) {
    for (int x = 0; x < width; ++x) planes[0][x] = f(0, from[x]);
    return;
  }
  float* __restrict first = planes[0], * __restrict second = planes[1], * __restrict third = planes[2];
  for (int x = 0; x < width; ++x) {
    first[x] = f(0, from[3 * x]);
    second[x] = f(1, from[3 * x + 1]);
    third[x] = f(2, from[3 * x + 2]);
  }
}

// f(y, pointers to row y of each plane)
template <class F>
VTK_INLINE void each_plane_row(const Image& in, const Planes& out, F f) {
  for (int y = 0; y < in.height; ++y) {
    float* rows[3];
    for (int c = 0; c < in.channels; ++c) rows[c] = out.values + ((int64_t)c * in.height + y) * in.width;
    f(y, rows);
  }
}

}  // namespace

void run_steps(const Image& in, const Image& out, const Step* steps, int count) {
  with_scratch([&](Carver& carver) {
    const Work work(carver, in.height, in.width);
    if (carver.memory) run_chain(in, out, steps, count, work);
  });
}

void resize_image(const Image& in, const Image& out, Filter filter) {
  with_scratch([&](Carver& carver) { resize(in, out, filter, carver); });
}

void normalize_image(const Image& in, const Planes& out) {
  float tables[3][256];
  for (int c = 0; c < in.channels; ++c)
    for (int v = 0; v < 256; ++v) tables[c][v] = ((float)v / 255.0f - out.mean[c]) / out.std[c];
  each_plane_row(in, out, [&](int y, float* const* rows) { to_planes(in.at(y), in.width, in.channels, rows, [&](int c, uint8_t v) { return tables[c][v]; }); });
}

void mix_image(const Image& in, const Mix& mix, const Planes& out) {
  with_scratch([&](Carver& carver) {
    const Work work(carver, in.height, in.width);
    const int64_t bytes = in.row_bytes();
    uint8_t* results = carver.take<uint8_t>(bytes * in.height * mix.width);
    float* sums = carver.take<float>(bytes);
    if (!carver.memory) return;
    const auto result = [&](int chain) { return Image{results + bytes * in.height * chain, bytes, in.height, in.width, in.channels}; };
    const Step* steps = mix.steps;
    for (int chain = 0; chain < mix.width; ++chain) {
      run_chain(in, result(chain), steps, mix.depths[chain], work);
      steps += mix.depths[chain];
    }
    // weights are convex: what is mixed first may be normalised once
    float scale[3], shift[3];
    for (int c = 0; c < in.channels; ++c) {
      scale[c] = 1.0f / (255.0f * out.std[c]);
      shift[c] = -out.mean[c] / out.std[c];
    }
    each_plane_row(in, out, [&](int y, float* const* rows) {
      const uint8_t* clean = in.at(y);
      const float rest = 1.0f - mix.mixture;
      for (int64_t i = 0; i < bytes; ++i) sums[i] = rest * clean[i];
      for (int chain = 0; chain < mix.width; ++chain) {
        const uint8_t* row = result(chain).at(y);
        const float weight = mix.mixture * mix.weights[chain];
        for (int64_t i = 0; i < bytes; ++i) sums[i] += weight * row[i];
      }
      to_planes(sums, in.width, in.channels, rows, [&](int c, float v) { return v * scale[c] + shift[c]; });
    });
  });
}

}  // namespace vtk::VTK_ISA
