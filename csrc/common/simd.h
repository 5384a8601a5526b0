// Vectors of floats for one instruction set. Compiled once per set, each in a namespace of its own (VTK_ISA), so that
// one library holds them all and the best is chosen at run time. Arithmetic is the compilers' vector extension; what it
// lacks (fma, exp, transposition, conversion) is here.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/dtype.h"

#define VTK_INLINE static inline __attribute__((always_inline))
#define VTK_NOINLINE static __attribute__((noinline))
#define VTK_UNROLL _Pragma("GCC unroll 32")

namespace vtk::VTK_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;  // lanes
using V = __m512;
#elif defined(__AVX2__)
constexpr int W = 8;
using V = __m256;
#else
constexpr int W = 4;
typedef float V __attribute__((vector_size(16)));
#endif
typedef int32_t I __attribute__((vector_size(sizeof(V))));
typedef float UnalignedV __attribute__((vector_size(sizeof(V)), aligned(4), may_alias));
typedef int32_t UnalignedI __attribute__((vector_size(sizeof(V)), aligned(4), may_alias));

VTK_INLINE V zero() { return V{}; }
VTK_INLINE V set1(float x) { return x - V{}; }  // x - 0, not x + 0: keeps the sign of -0
VTK_INLINE I set1i(int32_t x) { return x - I{}; }
VTK_INLINE V load(const float* p) { return (V)*(const UnalignedV*)p; }
VTK_INLINE I loadi(const int32_t* p) { return (I)*(const UnalignedI*)p; }
VTK_INLINE void store(float* p, V v) { *(UnalignedV*)p = (UnalignedV)v; }
// b where a comparison with NaN fails: larger(constant, x) hands a NaN in x on
#if defined(__AVX512F__)
VTK_INLINE V larger(V a, V b) { return _mm512_max_ps(a, b); }
#elif defined(__AVX2__)
VTK_INLINE V larger(V a, V b) { return _mm256_max_ps(a, b); }
VTK_INLINE V smaller(V a, V b) { return _mm256_min_ps(a, b); }
#else
VTK_INLINE V larger(V a, V b) { return a > b ? a : b; }
VTK_INLINE V smaller(V a, V b) { return a < b ? a : b; }
#endif

VTK_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// ---- doubles, half as many to a vector ------------------------------------------------------------------------------
// spelled out: the compilers' own conversion of a vector goes through pieces of four
#if defined(__AVX512F__)
using D = __m512d;
VTK_INLINE D low_doubles(V v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
VTK_INLINE D high_doubles(V v) { return _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1))); }
VTK_INLINE D fma(D a, D b, D c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__AVX2__)
using D = __m256d;
VTK_INLINE D low_doubles(V v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
VTK_INLINE D high_doubles(V v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
VTK_INLINE D fma(D a, D b, D c) { return _mm256_fmadd_pd(a, b, c); }
#else
typedef double D __attribute__((vector_size(16)));
VTK_INLINE D low_doubles(V v) { return D{v[0], v[1]}; }
VTK_INLINE D high_doubles(V v) { return D{v[2], v[3]}; }
VTK_INLINE D fma(D a, D b, D c) { return a * b + c; }
#endif

VTK_INLINE V square_root(V v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#else
  for (int i = 0; i < W; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// ---- exp, to about one unit in the last place of a normal result; 0 for very negative numbers, inf above 88.8, NaN kept ----------------------
constexpr float kLog2e = 1.44269504088896341f, kLn2 = 0.693147182464599609f;
#if !defined(__AVX2__)
constexpr float kLn2Head = 0.693359375f, kLn2Tail = -2.12194440e-4f;  // without fma: the head's products are exact
#endif

#if defined(__AVX512F__)
struct ExpTable {  // 2^(i / 32): small enough to be looked up inside two registers
  alignas(64) float value[32];
};
constexpr ExpTable make_exp_table() {
  ExpTable table{};
  double power = 1.0;
  for (float& value : table.value) {
    value = (float)power;
    power *= 1.02189714865411667823;
  }
  return table;
}
// constexpr: a start-up initialiser here would run this instruction set's code on machines that lack it
constexpr ExpTable exp_table = make_exp_table();

VTK_INLINE V exp(V x) {
  const V magic = set1(1.5f * (1 << 18));  // adding it rounds to a multiple of 1 / 32
  x = larger(set1(-110.0f), x);
  const V shifted = fma(x, set1(kLog2e), magic);
  const V n = shifted - magic;
  // |r| <= ln2 / 64; ln2's own rounding, 3e-9 of x, is lost in the rounding of x
  const V r = fma(n, set1(-kLn2), x);
  const V power = _mm512_permutex2var_ps(_mm512_load_ps(exp_table.value), _mm512_castps_si512(shifted), _mm512_load_ps(exp_table.value + 16));
  // e^r - 1: the linear coefficient carries the cubic term's best linear fit on the interval
  const V p = r * fma(r, set1(0.5f), set1(1.00001466f));
  return _mm512_scalef_ps(fma(power, p, power), n);
}
#else
VTK_INLINE V exp(V x) {
  const V magic = set1(1.5f * (1 << 23));  // adding it rounds to an integer
  // between the logarithms of the smallest number and of infinity: there the last two products round to 0 and to infinity
  x = smaller(set1(89.0f), larger(set1(-104.0f), x));
  const V shifted = fma(x, set1(kLog2e), magic);
  const V rounded = shifted - magic;
#if defined(__AVX2__)
  const V r = fma(rounded, set1(-kLn2), x);  // |r| <= ln2 / 2
#else
  const V r = x - rounded * kLn2Head - rounded * kLn2Tail;
#endif
  V p = set1(1.0f / 5040);
  p = fma(p, r, set1(1.0f / 720));
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  // 2^n in two factors: either fits a float where their product need not
  const I n = (I)shifted - (I)magic, half = n >> 1;
  return p * (V)((half + 127) << 23) * (V)((n - half + 127) << 23);
}
#endif

// ---- natural logarithm, to about one unit in the last place, subnormal numbers included; log(0) = -inf, NaN below 0, inf and NaN kept ------
#if defined(__AVX512F__)
struct LogTable {  // 1 / c and ln c for the middle c of 16 intervals of [1, 1.5), then 16 of [0.75, 1); c = 1 on either side of 1
  alignas(64) float inverse[32];
  alignas(64) float log[32];
};
constexpr LogTable make_log_table() {
  LogTable table{};
  for (int i = 0; i < 32; ++i) {
    const double middle = i == 0 || i == 31 ? 1.0 : (1.0 + (i + 0.5) / 32) / (i < 16 ? 1 : 2);
    const float inverse = (float)(1.0 / middle);
    // ln y = -2 atanh((1 - y) / (1 + y))
    const double t = (1.0 - (double)inverse) / (1.0 + (double)inverse);
    double power = t, sum = 0.0;
    for (int k = 1; k < 40; k += 2, power *= t * t) sum += power / k;
    table.inverse[i] = inverse;
    table.log[i] = (float)(2.0 * sum);
  }
  return table;
}
constexpr LogTable log_table = make_log_table();

VTK_INLINE V log(V x) {
  const V m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
  const V exponent = _mm512_getexp_ps(x) - _mm512_getexp_ps(m);
  const __m512i interval = _mm512_srli_epi32(_mm512_castps_si512(m), 18);
  const V inverse = _mm512_permutex2var_ps(_mm512_load_ps(log_table.inverse), interval, _mm512_load_ps(log_table.inverse + 16));
  const V table = _mm512_permutex2var_ps(_mm512_load_ps(log_table.log), interval, _mm512_load_ps(log_table.log + 16));
  const V r = fma(m, inverse, set1(-1.0f));  // |r| < 1 / 32
  const V q = fma(r, fma(r, fma(r, set1(0.2f), set1(-0.25f)), set1(1.0f / 3)), set1(-0.5f));
  return fma(exponent, set1(kLn2), table + fma(r * r, q, r));
}
#else
VTK_INLINE V log(V x) {
  const auto subnormal = x < 1.17549435e-38f;
  I bits = (I)(subnormal ? x * 8388608.0f : x);
  const I exponent = (bits - 0x3F3504F3) >> 23;  // of x / m, with sqrt(1/2) <= m < sqrt(2)
  const V r = (V)(bits - (exponent << 23)) - 1.0f, n = __builtin_convertvector(exponent + (subnormal ? set1i(-23) : set1i(0)), V);
  V q = set1(-0.07634586f);
  q = fma(q, r, set1(0.12761599f));
  q = fma(q, r, set1(-0.13160156f));
  q = fma(q, r, set1(0.14201753f));
  q = fma(q, r, set1(-0.16623360f));
  q = fma(q, r, set1(0.20001227f));
  q = fma(q, r, set1(-0.25000820f));
  q = fma(q, r, set1(0.33333331f));
  const V square = r * r;
  // ln2 in two parts: the head's product with n is exact
  const V y = fma(n, set1(0.693359375f), r + fma(square, fma(q, r, set1(-0.5f)), n * -2.12194440e-4f));
  const V infinity = set1(__builtin_inff());
  // what is neither above 0 nor finite: 0, below, infinite, NaN
  return x > 0.0f ? (x < infinity ? y : x) : (x == 0.0f ? -infinity : x - x + set1(__builtin_nanf("")));
}
#endif

// ---- one number for each of 8 rows ----------------------------------------------------------------------------------
typedef float Eight __attribute__((vector_size(32)));
typedef float UnalignedEight __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t EightInts __attribute__((vector_size(32)));

VTK_INLINE Eight load_eight(const float* p) { return (Eight) * (const UnalignedEight*)p; }
VTK_INLINE void store_eight(float* p, Eight v) { *(UnalignedEight*)p = (UnalignedEight)v; }
// v in the first `rows`, `other` in the rest
VTK_INLINE Eight first_rows(int rows, Eight v, float other) {
  const EightInts row{0, 1, 2, 3, 4, 5, 6, 7};
  return row < rows ? v : other - Eight{};
}

// the sum of the lanes of each of 8 vectors
#if defined(__AVX512F__)
VTK_INLINE Eight sum_rows(const V* v) {
  auto s1 = [](V x, V y) __attribute__((always_inline)) { return _mm512_shuffle_f32x4(x, y, 0x44) + _mm512_shuffle_f32x4(x, y, 0xEE); };
  auto s2 = [](V x, V y) __attribute__((always_inline)) { return _mm512_shuffle_f32x4(x, y, 0x88) + _mm512_shuffle_f32x4(x, y, 0xDD); };
  const V a = s2(s1(v[0], v[1]), s1(v[2], v[3])), b = s2(s1(v[4], v[5]), s1(v[6], v[7]));
  V c = _mm512_shuffle_ps(a, b, 0x88) + _mm512_shuffle_ps(a, b, 0xDD);
  c = c + _mm512_permute_ps(c, 0xB1);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  return (Eight)_mm512_castps512_ps256(_mm512_permutexvar_ps(order, c));
}
VTK_INLINE Eight exp_eight(Eight x) { return (Eight)_mm512_castps512_ps256(exp(_mm512_castps256_ps512((__m256)x))); }
#elif defined(__AVX2__)
VTK_INLINE Eight sum_rows(const V* v) {
  auto four = [](const V* u) __attribute__((always_inline)) {
    const V s = _mm256_hadd_ps(_mm256_hadd_ps(u[0], u[1]), _mm256_hadd_ps(u[2], u[3]));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  };
  return (Eight)_mm256_set_m128(four(v + 4), four(v));
}
VTK_INLINE Eight exp_eight(Eight x) { return (Eight)exp((V)x); }
#else
VTK_INLINE Eight sum_rows(const V* v) {
  Eight s;
  for (int r = 0; r < 8; ++r) s[r] = (v[r][0] + v[r][1]) + (v[r][2] + v[r][3]);
  return s;
}
VTK_INLINE Eight exp_eight(Eight x) {
  V halves[2];
  memcpy(halves, &x, sizeof(x));
  halves[0] = exp(halves[0]);
  halves[1] = exp(halves[1]);
  memcpy(&x, halves, sizeof(x));
  return x;
}
#endif

// all lie between the bounds; NaN does not
VTK_INLINE bool all_between(Eight v, float low, float high) {
#if defined(__AVX2__)
  return _mm256_movemask_ps((__m256)((v > low) & (v < high))) == 0xFF;
#else
  bool all = true;
  for (int i = 0; i < 8; ++i) all &= v[i] > low && v[i] < high;
  return all;
#endif
}

VTK_INLINE float sum(V v) {
  float s = 0.0f;
  for (int i = 0; i < W; ++i) s += v[i];
  return s;
}
VTK_INLINE float largest(V v) {
  float m = v[0];
  for (int i = 1; i < W; ++i) m = v[i] > m || v[i] != v[i] ? v[i] : m;
  return m;
}

// ---- transposition of a W x W block ---------------------------------------------------------------------------------
#if defined(__AVX512F__)
VTK_INLINE void transpose(V (&r)[16]) {
  V t[16];
  VTK_UNROLL for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  auto lo = [](V a, V b) { return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))); };
  auto hi = [](V a, V b) { return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))); };
  VTK_UNROLL for (int i = 0; i < 4; ++i) {
    r[4 * i] = lo(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = hi(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = lo(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = hi(t[4 * i + 1], t[4 * i + 3]);
  }
  VTK_UNROLL for (int j = 0; j < 4; ++j) {
    t[j] = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88);
    t[4 + j] = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
    t[8 + j] = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xDD);
    t[12 + j] = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xDD);
  }
  VTK_UNROLL for (int j = 0; j < 4; ++j) {
    r[j] = _mm512_shuffle_f32x4(t[j], t[4 + j], 0x88);
    r[8 + j] = _mm512_shuffle_f32x4(t[j], t[4 + j], 0xDD);
    r[4 + j] = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0x88);
    r[12 + j] = _mm512_shuffle_f32x4(t[8 + j], t[12 + j], 0xDD);
  }
}
#elif defined(__AVX2__)
VTK_INLINE void transpose(V (&r)[8]) {
  V t[8], u[8];
  VTK_UNROLL for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  VTK_UNROLL for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
  }
  VTK_UNROLL for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    r[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}
#else
VTK_INLINE void transpose(V (&r)[4]) {
  V t[4];
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) t[i][j] = r[j][i];
  for (int i = 0; i < 4; ++i) r[i] = t[i];
}
#endif

// ---- rows in memory of any storage type, `count` <= W values --------------------------------------------------------
VTK_INLINE float to_float(float x) { return x; }
VTK_INLINE float to_float(BFloat16 x) { return __builtin_bit_cast(float, (uint32_t)x.bits << 16); }
VTK_INLINE float to_float(Half x) {
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7FFF;
  // scaling by 2^112 moves the exponent's bias and makes subnormals normal; infinities and NaNs need theirs restored
  const float value = __builtin_bit_cast(float, magnitude << 13) * 0x1p112f;
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  return __builtin_bit_cast(float, sign | (magnitude >= 0x7C00 ? bits | 0x7F800000 : bits));
}
template <class T>
VTK_INLINE T from_float(float x);
template <>
inline __attribute__((always_inline)) float from_float<float>(float x) {
  return x;
}
template <>
inline __attribute__((always_inline)) BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return {(uint16_t)(x != x ? 0x7FC0 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}
template <>
inline __attribute__((always_inline)) Half from_float<Half>(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude >= 0x47800000) return {(uint16_t)(sign | (magnitude > 0x7F800000 ? 0x7E00 : 0x7C00))};
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded mantissa in the low bits
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    return {(uint16_t)(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3F000000))};
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return {(uint16_t)(sign | ((magnitude - 0x38000000 + 0xFFF + odd) >> 13))};
}

#if defined(__AVX512F__)
VTK_INLINE __mmask16 first(int count) { return (__mmask16)((1u << count) - 1); }
VTK_INLINE V load_row(const float* p, int count) { return _mm512_maskz_loadu_ps(first(count), p); }
VTK_INLINE V load_row(const BFloat16* p, int count) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(count), p)), 16));
}
VTK_INLINE V load_row(const Half* p, int count) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(count), p)); }
VTK_INLINE void store_row(float* p, V v, int count) { _mm512_mask_storeu_ps(p, first(count), v); }
VTK_INLINE void store_row(Half* p, V v, int count) { _mm256_mask_storeu_epi16(p, first(count), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
VTK_INLINE __m256i round_bf16(V v) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(v);
#else
  const __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7FC00000)), 16));
#endif
}
VTK_INLINE void store_row(BFloat16* p, V v, int count) { _mm256_mask_storeu_epi16(p, first(count), round_bf16(v)); }
VTK_INLINE void stream_row(float* p, V v) { _mm512_stream_ps(p, v); }
VTK_INLINE void stream_row(BFloat16* p, V v) { _mm256_stream_si256((__m256i*)p, round_bf16(v)); }
VTK_INLINE void stream_row(Half* p, V v) { _mm256_stream_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
VTK_INLINE void stream_fence() { _mm_sfence(); }
#else
template <class T>
VTK_INLINE V load_row(const T* p, int count) {
  V v = zero();
  if constexpr (sizeof(T) == 4) {
    if (count == W) return load(p);
  }
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 2) {
    if (count == 8) {
      const __m128i half = _mm_loadu_si128((const __m128i*)p);
      if constexpr (T::kIsHalf) return _mm256_cvtph_ps(half);
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
  }
#endif
  for (int i = 0; i < count; ++i) v[i] = to_float(p[i]);
  return v;
}
template <class T>
VTK_INLINE void store_row(T* p, V v, int count) {
  if constexpr (sizeof(T) == 4) {
    if (count == W) return store(p, v);
  }
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 2) {
    if (count == 8 && T::kIsHalf) return _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (int i = 0; i < count; ++i) p[i] = from_float<T>(v[i]);
}
template <class T>
VTK_INLINE void stream_row(T* p, V v) {
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return _mm256_stream_ps(p, v);
#endif
  store_row(p, v, W);
}
VTK_INLINE void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}
#endif

}  // namespace vtk::VTK_ISA
