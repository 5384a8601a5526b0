// The activations and their derivatives, a vector at a time.
#pragma once
#include "common/simd.h"
#include "linear/kernel.h"

namespace vtk::VTK_ISA {

// The standard normal distribution function, and with it the density: both from one exponential.
struct Normal {
  V below, density;
};
VTK_INLINE Normal normal(V x) {
  const V t = (V)((I)x & 0x7FFFFFFF), e = exp(x * x * -0.5f), u = 1.0f / fma(t, set1(0.23f), set1(1.0f));
  // the tail beyond t, over exp(-t^2 / 2), to 4e-8 of itself for t < 10; beyond, only the exponential matters
  V p = set1(-0.0767446109f);
  p = fma(p, u, set1(0.2815031278f));
  p = fma(p, u, set1(-0.2583726386f));
  p = fma(p, u, set1(0.2769879129f));
  p = fma(p, u, set1(-0.0143836246f));
  p = fma(p, u, set1(0.1107466194f));
  p = fma(p, u, set1(0.0882905260f));
  p = fma(p, u, set1(0.0919726685f));
  const V tail = p * u * e;
  return {x > 0.0f ? 1.0f - tail : tail, e * 0.3989422804f};
}

VTK_INLINE V sigmoid(V x) { return 1.0f / (1.0f + exp(-x)); }

struct Identity {
  VTK_INLINE V value(V x) { return x; }
  VTK_INLINE V slope(V) { return set1(1.0f); }
};
struct Relu {
  VTK_INLINE V value(V x) { return larger(zero(), x); }
  // torch's: a NaN passes the gradient on
  VTK_INLINE V slope(V x) { return x <= 0.0f ? zero() : set1(1.0f); }
};
struct Gelu {
  VTK_INLINE V value(V x) { return x * normal(x).below; }
  VTK_INLINE V slope(V x) {
    const Normal n = normal(x);
    return fma(x, n.density, n.below);
  }
};
// x * sigmoid(s(x)), which the next three are
template <class S>
struct Gated {
  VTK_INLINE V value(V x) { return x * sigmoid(S::at(x)); }
  VTK_INLINE V slope(V x) {
    const V open = sigmoid(S::at(x));
    return fma(x * open * (1.0f - open), S::slope(x), open);
  }
};
struct Itself {
  VTK_INLINE V at(V x) { return x; }
  VTK_INLINE V slope(V) { return set1(1.0f); }
};
struct Scaled {
  VTK_INLINE V at(V x) { return x * 1.702f; }
  VTK_INLINE V slope(V) { return set1(1.702f); }
};
// 2 sqrt(2 / pi) (x + 0.044715 x^3): (1 + tanh(y)) / 2 = sigmoid(2 y)
struct Cubic {
  VTK_INLINE V at(V x) { return x * fma(x * x, set1(0.0713548163f), set1(1.5957691216f)); }
  VTK_INLINE V slope(V x) { return fma(x * x, set1(0.2140644488f), set1(1.5957691216f)); }
};

// f(activation) for one that is known at run time
template <class F>
VTK_INLINE void with_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::kNone: return f(Identity{});
    case Activation::kRelu: return f(Relu{});
    case Activation::kGelu: return f(Gelu{});
    case Activation::kGeluTanh: return f(Gated<Cubic>{});
    case Activation::kQuickGelu: return f(Gated<Scaled>{});
    case Activation::kSilu: return f(Gated<Itself>{});
  }
}

}  // namespace vtk::VTK_ISA
