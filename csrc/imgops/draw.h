// What AugMix draws for one picture, from random numbers that only depend on the seed, the view and their own count.
#pragma once
#include <cmath>
#include <vector>

// drawing is too little work to be worth a variant for each instruction set
#define VTK_ISA portable
#include "common/philox.h"
#include "imgops/kernel.h"

namespace vtk::imgops {

// Philox4x32-10 in order: number n of a stream is the first word of counter (n, item) under the key `seed`.
struct Stream {
  uint64_t seed, item;
  uint32_t drawn = 0;

  uint32_t word() { return portable::philox(seed, drawn++, item); }
  // 53 bits in [0, 1), from two words
  double uniform() {
    const uint32_t high = word() >> 5, low = word() >> 6;
    return (high * 67108864.0 + low) / 9007199254740992.0;
  }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  // 0 .. count - 1
  int below(int count) { return (int)((uint64_t)word() * (uint64_t)count >> 32); }
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(2.0 * M_PI * uniform());
  }

  // Marsaglia and Tsang's method; below 1 one above it, made smaller
  double gamma(double alpha) {
    if (alpha == 1.0) return -std::log(1.0 - uniform());
    if (alpha < 1.0) {
      const double larger = gamma(alpha + 1.0);
      return larger * std::pow(1.0 - uniform(), 1.0 / alpha);
    }
    const double d = alpha - 1.0 / 3.0, c = 1.0 / std::sqrt(9.0 * d);
    while (true) {
      const double x = normal(), root = 1.0 + c * x;
      const double u = 1.0 - uniform();
      if (root <= 0.0) continue;
      const double v = root * root * root;
      if (std::log(u) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
    }
  }

  std::vector<float> dirichlet(double alpha, int count) {
    std::vector<double> parts(count);
    double sum = 0.0;
    for (double& part : parts) sum += part = gamma(alpha);
    // a tiny alpha puts all weight on one, and may leave too little of it to see
    if (sum == 0.0) parts[below(count)] = sum = 1.0;
    std::vector<float> weights(count);
    for (int i = 0; i < count; ++i) weights[i] = (float)(parts[i] / sum);
    return weights;
  }
};

struct AugMix {
  int width, depth;  // depth: below 1 draws 1, 2 or 3 for each chain
  double severity, alpha;
  std::vector<Op> ops;
  Filter filter;
  uint8_t fill[3];
};

struct Drawn {
  std::vector<float> weights;
  float mixture;
  std::vector<int> depths;
  std::vector<Step> steps;
};

// The argument of an operation at a level drawn up to the severity, the sign of a geometric one included.
inline void draw_arguments(Stream& stream, double severity, int height, int width, Step& step) {
  const auto level = [&] { return stream.uniform(0.1, severity); };
  const auto either_sign = [&](double value) { return stream.uniform() > 0.5 ? -value : value; };
  double& value = step.values[0];
  switch (step.op) {
    case Op::kPosterize: value = 4 - (int)(level() * 4 / 10); break;
    case Op::kSolarize: value = 256 - (int)(level() * 256 / 10); break;
    case Op::kRotate: value = either_sign((int)(level() * 30 / 10)); break;
    case Op::kShearX:
    case Op::kShearY: value = either_sign(level() * 0.3 / 10); break;
    case Op::kTranslateX: value = either_sign((int)(level() * (width / 3.0) / 10)); break;
    case Op::kTranslateY: value = either_sign((int)(level() * (height / 3.0) / 10)); break;
    case Op::kColor:
    case Op::kContrast:
    case Op::kBrightness:
    case Op::kSharpness: value = level() * 1.8 / 10 + 0.1; break;
    default: break;
  }
}

inline Drawn draw(const AugMix& augmix, uint64_t seed, uint64_t view, int height, int width) {
  Stream stream{seed, view};
  Drawn drawn;
  drawn.weights = stream.dirichlet(augmix.alpha, augmix.width);
  drawn.mixture = stream.dirichlet(augmix.alpha, 2)[0];
  for (int chain = 0; chain < augmix.width; ++chain) {
    const int depth = augmix.depth > 0 ? augmix.depth : 1 + stream.below(3);
    drawn.depths.push_back(depth);
    for (int i = 0; i < depth; ++i) {
      Step step{augmix.ops[stream.below((int)augmix.ops.size())], augmix.filter, {augmix.fill[0], augmix.fill[1], augmix.fill[2]}};
      draw_arguments(stream, augmix.severity, height, width, step);
      drawn.steps.push_back(step);
    }
  }
  return drawn;
}

}  // namespace vtk::imgops
