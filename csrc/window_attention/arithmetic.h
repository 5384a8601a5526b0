// The two arithmetics of the kernel. Both multiply matrices of 32-bit words, a broadcast word of A times a vector of
// words of B: a word is one float, or a pair of bf16 values whose products go into the same float.
#pragma once
#include "common/simd.h"

namespace vtk::VTK_ISA {

// Rows of one head inside a window: row i is at base + offset[i], or `padding` where offset[i] is negative.
template <class T>
struct Rows {
  const T* base;
  const int64_t* offset;
  const T* padding;
  inline __attribute__((always_inline)) const T* operator[](int i) const { return offset[i] < 0 ? padding : base + offset[i]; }
};

VTK_INLINE int round_up(int n, int to) { return (n + to - 1) / to * to; }

struct Float32 {
  using Word = float;
  static constexpr int kPair = 1;  // values in a word

  VTK_INLINE V broadcast(const Word* p) { return set1(*p); }
  VTK_INLINE V multiply_add(V a, V b, V sum) { return fma(a, b, sum); }

  // [n][d] -> dst[n][ld], zero up to ld
  template <class T>
  VTK_INLINE void pack_rows(const Rows<T>& rows, int n, int d, Word* dst, int ld) {
    for (int i = 0; i < n; ++i) {
      const T* row = rows[i];
      for (int c = 0; c < ld; c += W) store(dst + (int64_t)i * ld + c, load_row(row + c, c + W <= d ? W : d - c));
    }
  }
  // [n][d] -> dst[d][ld], ld >= n, zero where there is no token
  template <class T>
  VTK_INLINE void pack_columns(const Rows<T>& rows, int n, int d, Word* dst, int ld) {
    for (int t = 0; t < ld; t += W)
      for (int c = 0; c < d; c += W) {
        V block[W];
        const int width = c + W <= d ? W : d - c;
        VTK_UNROLL for (int i = 0; i < W; ++i) block[i] = t + i < n ? load_row(rows[t + i] + c, width) : zero();
        transpose(block);
        VTK_UNROLL for (int i = 0; i < W; ++i) if (i < width) store(dst + (int64_t)(c + i) * ld + t, block[i]);
      }
  }
  // [n][d] -> the B operand of a product that sums over tokens
  template <class T>
  VTK_INLINE void pack_depth(const Rows<T>& rows, int n, int d, Word* dst, int ld) {
    pack_rows(rows, n, d, dst, ld);
  }
  VTK_INLINE void store_values(Word* p, V v) { store(p, v); }
  // one value in a column of 8 rows, `stride` words apart: the last of its row
  VTK_INLINE void store_column(Word* p, int64_t stride, Eight values, int rows) {
    alignas(32) float memory[8];
    store_eight(memory, values);
    for (int r = 0; r < rows; ++r) p[r * stride] = memory[r];
  }
};

#if defined(__AVX512BF16__)
struct BFloat16Pairs {
  using Word = uint32_t;
  static constexpr int kPair = 2;

  VTK_INLINE V broadcast(const Word* p) { return _mm512_castsi512_ps(_mm512_set1_epi32((int)*p)); }
  VTK_INLINE V multiply_add(V a, V b, V sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

  // 32 values of a row, zero beyond `count`
  VTK_INLINE __m512i load_values(const BFloat16* p, int count) { return count >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((1u << count) - 1, p); }
  // words (a[e], b[e]) for e = 0..31, as two vectors
  VTK_INLINE void interleave(__m512i a, __m512i b, Word* dst, bool second) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    _mm512_storeu_si512(dst, _mm512_permutex2var_epi16(a, low, b));
    if (second) _mm512_storeu_si512(dst + 16, _mm512_permutex2var_epi16(a, _mm512_add_epi16(low, _mm512_set1_epi16(16)), b));
  }

  // [n][d] -> dst[n][ld] with ld words of two neighbouring values
  VTK_INLINE void pack_rows(const Rows<BFloat16>& rows, int n, int d, Word* dst, int ld) {
    for (int i = 0; i < n; ++i) {
      const BFloat16* row = rows[i];
      for (int c = 0; c < ld; c += 16) _mm512_storeu_si512(dst + (int64_t)i * ld + c, load_values(row + 2 * c, d - 2 * c));
    }
  }
  // [n][d] -> dst[d / 2][ld]
  VTK_INLINE void pack_columns(const Rows<BFloat16>& rows, int n, int d, Word* dst, int ld) {
    for (int t = 0; t < ld; t += 16)
      for (int c = 0; c < d; c += 32) {
        V block[16];
        VTK_UNROLL for (int i = 0; i < 16; ++i) block[i] = t + i < n ? _mm512_castsi512_ps(load_values(rows[t + i] + c, d - c)) : zero();
        transpose(block);
        VTK_UNROLL for (int i = 0; i < 16; ++i) if (c + 2 * i < d) _mm512_storeu_ps(dst + (int64_t)(c / 2 + i) * ld + t, block[i]);
      }
  }
  // [n][d] -> dst[n / 2][ld]: words of two neighbouring tokens; an odd last token is paired with zero
  VTK_INLINE void pack_depth(const Rows<BFloat16>& rows, int n, int d, Word* dst, int ld) {
    for (int i = 0; i < n; i += 2) {
      const BFloat16 *first = rows[i], *second = i + 1 < n ? rows[i + 1] : nullptr;
      for (int c = 0; c < ld; c += 32)
        interleave(load_values(first + c, d - c), second ? load_values(second + c, d - c) : _mm512_setzero_si512(), dst + (int64_t)(i / 2) * ld + c,
                   c + 16 < ld);
    }
  }
  // W values, two to a word
  VTK_INLINE void store_values(Word* p, V v) { _mm256_storeu_si256((__m256i*)p, round_bf16(v)); }
  VTK_INLINE void store_column(Word* p, int64_t stride, Eight values, int rows) {
    alignas(32) Word words[8];
    _mm256_store_si256((__m256i*)words, _mm256_cvtepu16_epi32((__m128i)_mm256_cvtneps_pbh((__m256)values)));
    for (int r = 0; r < rows; ++r) p[r * stride] = words[r];
  }
  // the same where a word holds the values of two rows
  VTK_INLINE void store_paired_column(Word* p, int64_t stride, Eight values, int rows) {
    alignas(16) Word words[4];
    _mm_store_si128((__m128i*)words, (__m128i)_mm256_cvtneps_pbh((__m256)values));
    for (int r = 0; r < rows; r += 2) p[r / 2 * stride] = words[r / 2];
  }
  // words (a[e], b[e])
  VTK_INLINE void store_pairs(Word* p, V a, V b) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a)));
  }
};
#endif

// sums[r][v] += A[r][k] * B[k][v] over `steps` words; A's rows are lda apart, its words ka apart
template <class M, int R, int NV>
VTK_INLINE void multiply(V (&sums)[R][NV], const typename M::Word* a, int64_t lda, int64_t ka, const typename M::Word* b, int64_t ldb, int steps) {
#pragma GCC unroll 2
  for (int k = 0; k < steps; ++k) {
    V line[NV];
    VTK_UNROLL for (int v = 0; v < NV; ++v) line[v] = load((const float*)(b + k * ldb) + v * W);
    VTK_UNROLL for (int r = 0; r < R; ++r) {
      const V word = M::broadcast(a + r * lda + k * ka);
      VTK_UNROLL for (int v = 0; v < NV; ++v) sums[r][v] = M::multiply_add(word, line[v], sums[r][v]);
    }
  }
}

// out[r] = A_r . b for `rows` rows of `words` words (a multiple of W): the lone last column of a window
template <class M>
VTK_INLINE void multiply_column(const typename M::Word* a, int64_t lda, const typename M::Word* b, int words, int rows, float* out) {
  for (int r = 0; r < rows; r += 8) {
    V sums[8];
    VTK_UNROLL for (int i = 0; i < 8; ++i) sums[i] = zero();
    for (int c = 0; c < words; c += W) {
      const V column = load((const float*)(b + c));
      VTK_UNROLL for (int i = 0; i < 8; ++i) sums[i] = M::multiply_add(load((const float*)(a + (r + i) * lda + c)), column, sums[i]);
    }
    store_eight(out + r, sum_rows(sums));
  }
}

}  // namespace vtk::VTK_ISA
