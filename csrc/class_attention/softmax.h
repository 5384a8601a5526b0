// Softmax down the columns of a dense [rows][columns] matrix of few columns, and its gradient. Vectors run over the flat
// matrix: with `columns` columns a lane's column repeats every `period` vectors.
#pragma once
#include "class_attention/products.h"
#include "common/carver.h"
#include "common/philox.h"

namespace vtk::VTK_ISA {

VTK_INLINE int common_divisor(int a, int b) { return b == 0 ? a : common_divisor(b, a % b); }

class Softmax {
 public:
  int64_t padded;  // floats a matrix takes: its last vector is whole

  Softmax(Carver& carver, int64_t rows, int columns)
      : padded((rows * columns + W - 1) / W * W), size_(rows * columns), columns_(columns), period_(columns / common_divisor(columns, W)) {
    lanes_ = carver.take<float>((size_t)period_ * W);
    largest_ = carver.take<float>(columns);
    inverse_ = carver.take<float>(columns);
  }

  // scores become probabilities; what is past the last row becomes 0
  void forward(float* scores) const {
    fill(scores, -__builtin_inff());
    for (int j = 0; j < period_; ++j) {
      V m = set1(-__builtin_inff());
      for (int64_t i = (int64_t)j * W; i < padded; i += step()) m = larger(m, load(scores + i));
      store(lanes_ + j * W, m);
    }
    fold(largest_, -__builtin_inff(), [](float a, float b) { return a > b ? a : b; });
    for (int j = 0; j < period_; ++j) {
      const V m = load(lanes_ + j * W);
      V s = zero();
      for (int64_t i = (int64_t)j * W; i < padded; i += step()) {
        const V e = exp(load(scores + i) - m);
        store(scores + i, e);
        s = s + e;
      }
      store(lanes_ + j * W, s);
    }
    fold(inverse_, 0.0f, [](float a, float b) { return a + b; });
    for (int c = 0; c < columns_; ++c) inverse_[c] = 1.0f / inverse_[c];
    spread(inverse_);
    for (int j = 0; j < period_; ++j) {
      const V inverse = load(lanes_ + j * W);
      for (int64_t i = (int64_t)j * W; i < padded; i += step()) store(scores + i, load(scores + i) * inverse);
    }
  }

  // of the last forward: each column's largest score, and 1 / the sum of its exponentials
  const float* largest() const { return largest_; }
  const float* inverse() const { return inverse_; }

  // d_p, the gradient of the probabilities p, becomes that of the scores: p * (d_p - mean of d_p under p)
  void backward(const float* p, float* d_p) const {
    fill(d_p, 0.0f);
    float *totals = inverse_, *means = largest_;
    for (int j = 0; j < period_; ++j) {
      V s = zero();
      for (int64_t i = (int64_t)j * W; i < padded; i += step()) s = s + load(p + i);
      store(lanes_ + j * W, s);
    }
    fold(totals, 0.0f, [](float a, float b) { return a + b; });
    for (int j = 0; j < period_; ++j) {
      V s = zero();
      for (int64_t i = (int64_t)j * W; i < padded; i += step()) s = fma(load(p + i), load(d_p + i), s);
      store(lanes_ + j * W, s);
    }
    fold(means, 0.0f, [](float a, float b) { return a + b; });
    // rounding left the sum of probabilities a little off 1, which a large mean would carry into every score
    for (int c = 0; c < columns_; ++c) means[c] /= totals[c];
    spread(means);
    for (int j = 0; j < period_; ++j) {
      const V mean = load(lanes_ + j * W);
      for (int64_t i = (int64_t)j * W; i < padded; i += step()) store(d_p + i, load(p + i) * (load(d_p + i) - mean));
    }
  }

  void fill(float* matrix, float value) const {
    for (int64_t i = size_; i < padded; ++i) matrix[i] = value;
  }

 private:
  int64_t step() const { return (int64_t)period_ * W; }
  // lanes to one number for each column, and back to all lanes of the column
  template <class F>
  inline __attribute__((always_inline)) void fold(float* to, float start, F f) const {
    for (int c = 0; c < columns_; ++c) to[c] = start;
    for (int l = 0, c = 0; l < period_ * W; ++l, c = c + 1 == columns_ ? 0 : c + 1) to[c] = f(to[c], lanes_[l]);
    spread(to);
  }
  void spread(const float* from) const {
    for (int l = 0, c = 0; l < period_ * W; ++l, c = c + 1 == columns_ ? 0 : c + 1) lanes_[l] = from[c];
  }

  int64_t size_;
  int columns_, period_;
  float *lanes_, *largest_, *inverse_;
};

}  // namespace vtk::VTK_ISA
