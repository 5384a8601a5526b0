// Operations on uint8 images, exactly as Pillow computes them. Raw pointers: no Python, no numpy.
#pragma once
#include <cstddef>
#include <cstdint>

#include "common/isa.h"

namespace vtk::imgops {

// Rows of interleaved channels (1 or 3); `row` bytes from one row to the next.
struct Image {
  uint8_t* pixels;
  int64_t row;
  int height, width, channels;

  uint8_t* at(int y) const { return pixels + y * row; }
  int64_t row_bytes() const { return (int64_t)width * channels; }
};

enum class Op {
  kAutocontrast,
  kEqualize,
  kInvert,
  kPosterize,     // bits
  kSolarize,      // threshold
  kSolarizeAdd,   // addend, threshold
  kColor,         // factor
  kContrast,      // factor
  kBrightness,    // factor
  kSharpness,     // factor
  kRotate,        // degrees, counter-clockwise
  kShearX,        // pixels per row
  kShearY,        // pixels per column
  kTranslateX,    // pixels, positive to the left
  kTranslateY,    // pixels, positive upwards
  kAffine,        // six numbers: output to input, as Pillow's
  kCutout,        // left, top, right, bottom
  kFlip,          // left to right
  kGaussianBlur,  // radius
};
constexpr const char* kOpNames[] = {"autocontrast", "equalize",   "invert",    "posterize", "solarize",     "solarize_add", "color",
                                    "contrast",     "brightness", "sharpness", "rotate",    "shear_x",      "shear_y",      "translate_x",
                                    "translate_y",  "affine",     "cutout",    "flip",      "gaussian_blur"};
constexpr int kOps = sizeof(kOpNames) / sizeof(kOpNames[0]);

enum class Filter { kNearest, kBilinear, kBicubic, kBox, kHamming, kLanczos };
constexpr const char* kFilterNames[] = {"nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"};
constexpr int kFilters = sizeof(kFilterNames) / sizeof(kFilterNames[0]);

struct Step {
  Op op;
  Filter filter = Filter::kBilinear;
  uint8_t fill[3] = {0, 0, 0};
  double values[6] = {};
};

// Where a normalised float image goes: planes of height x width, one after the other.
struct Planes {
  float* values;
  float mean[3], std[3];
};

// `width` chains, one after the other in `steps`; their results are mixed by `weights`, and the whole with the image by `mixture`.
struct Mix {
  const Step* steps;
  const int* depths;
  const float* weights;
  int width;
  float mixture;
};

}  // namespace vtk::imgops

// `out` may be `in` itself
VTK_DECLARE(void run_steps(const imgops::Image& in, const imgops::Image& out, const imgops::Step* steps, int count))
VTK_DECLARE(void resize_image(const imgops::Image& in, const imgops::Image& out, imgops::Filter filter))
VTK_DECLARE(void normalize_image(const imgops::Image& in, const imgops::Planes& out))
VTK_DECLARE(void mix_image(const imgops::Image& in, const imgops::Mix& mix, const imgops::Planes& out))
