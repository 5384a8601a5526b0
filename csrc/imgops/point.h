// Operations that look at a pixel, its neighbours at most, and the statistics of the image.
#pragma once
#include <algorithm>
#include <cstring>

#include "common/simd.h"
#include "imgops/kernel.h"

namespace vtk::VTK_ISA {
using imgops::Image;

// f(row of in, row of out, bytes); an image without gaps is one long row
template <class F>
VTK_INLINE void each_row(const Image& in, const Image& out, F f) {
  const int64_t bytes = in.row_bytes();
  if (in.row == bytes && out.row == bytes) return f(in.pixels, out.pixels, bytes * in.height);
  for (int y = 0; y < in.height; ++y) f(in.at(y), out.at(y), bytes);
}

template <class F>
VTK_INLINE void each_byte(const Image& in, const Image& out, F f) {
  each_row(in, out, [&](const uint8_t* from, uint8_t* to, int64_t bytes) {
    for (int64_t i = 0; i < bytes; ++i) to[i] = f(from[i]);
  });
}

static void copy_image(const Image& in, const Image& out) {
  if (in.pixels == out.pixels) return;
  each_row(in, out, [](const uint8_t* from, uint8_t* to, int64_t bytes) { std::memcpy(to, from, bytes); });
}

// ---- through a table for each channel ---------------------------------------------------------------------------------
struct Tables {
  alignas(64) uint8_t of[3][256];
};

#if defined(__AVX512F__)
#define VTK_VBMI __attribute__((target("avx512f,avx512bw,avx512vbmi")))

VTK_VBMI static inline __m512i look_up(const uint8_t* table, __m512i index) {
  const __m512i* quarter = (const __m512i*)table;
  const __m512i low = _mm512_permutex2var_epi8(quarter[0], index, quarter[1]), high = _mm512_permutex2var_epi8(quarter[2], index, quarter[3]);
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
}

// 64 pixels of three channels: in vector v, byte i belongs to channel (64 v + i) mod 3
VTK_VBMI static int64_t look_up_vectors(const Tables& tables, int channels, const uint8_t* from, uint8_t* to, int64_t bytes) {
  if (channels == 1) {
    int64_t i = 0;
    for (; i + 64 <= bytes; i += 64) _mm512_storeu_si512(to + i, look_up(tables.of[0], _mm512_loadu_si512(from + i)));
    return i;
  }
  constexpr uint64_t kEveryThird = 0x9249249249249249ull;  // bits 0, 3, 6, ..., 63
  int64_t i = 0;
  for (; i + 192 <= bytes; i += 192)
    for (int v = 0; v < 3; ++v) {
      const __m512i index = _mm512_loadu_si512(from + i + 64 * v);
      // 64 is 1 mod 3
      const __m512i first = look_up(tables.of[v], index), second = look_up(tables.of[(v + 1) % 3], index), third = look_up(tables.of[(v + 2) % 3], index);
      const __m512i two = _mm512_mask_blend_epi8(kEveryThird << 1, first, second);
      _mm512_storeu_si512(to + i + 64 * v, _mm512_mask_blend_epi8(kEveryThird << 2, two, third));
    }
  return i;
}
#endif

static void look_up_rows(const Image& in, const Image& out, const Tables& tables) {
  each_row(in, out, [&](const uint8_t* from, uint8_t* to, int64_t bytes) {
    int64_t i = 0;
#if defined(__AVX512F__)
    static const bool has_vbmi = __builtin_cpu_supports("avx512vbmi");
    if (has_vbmi) i = look_up_vectors(tables, in.channels, from, to, bytes);
#endif
    if (in.channels == 1)
      for (; i < bytes; ++i) to[i] = tables.of[0][from[i]];
    else
      for (; i < bytes; i += 3)
        for (int c = 0; c < 3; ++c) to[i + c] = tables.of[c][from[i + c]];
  });
}

typedef uint8_t Bytes64 __attribute__((vector_size(64)));

static void autocontrast(const Image& in, const Image& out) {
  // three vectors are a whole number of pixels
  constexpr int kBlock = 3 * sizeof(Bytes64);
  alignas(64) uint8_t low[kBlock], high[kBlock];
  std::memset(low, 255, kBlock);
  std::memset(high, 0, kBlock);
  Bytes64 lows[3], highs[3];
  std::memcpy(lows, low, kBlock);
  std::memcpy(highs, high, kBlock);
  each_row(in, out, [&](const uint8_t* from, uint8_t*, int64_t bytes) {
    int64_t i = 0;
    for (; i + kBlock <= bytes; i += kBlock) VTK_UNROLL for (int v = 0; v < 3; ++v) {
        Bytes64 values;
        std::memcpy(&values, from + i + 64 * v, 64);
        lows[v] = values < lows[v] ? values : lows[v];
        highs[v] = values > highs[v] ? values : highs[v];
      }
    for (int j = 0, rest = (int)(bytes - i); j < std::min(rest, kBlock); ++j) {
      low[j] = std::min(low[j], from[i + j]);
      high[j] = std::max(high[j], from[i + j]);
    }
  });
  for (int j = 0; j < kBlock; ++j) {
    low[j] = std::min(low[j], ((const uint8_t*)lows)[j]);
    high[j] = std::max(high[j], ((const uint8_t*)highs)[j]);
  }
  Tables tables;
  for (int c = 0; c < std::min(in.channels, 3); ++c) {
    int lowest = 255, highest = 0;
    for (int j = c; j < kBlock; j += in.channels) {
      lowest = std::min<int>(lowest, low[j]);
      highest = std::max<int>(highest, high[j]);
    }
    const double scale = highest > lowest ? 255.0 / (highest - lowest) : 1.0, offset = highest > lowest ? -lowest * scale : 0.0;
    for (int v = 0; v < 256; ++v) tables.of[c][v] = (uint8_t)std::clamp((int)(v * scale + offset), 0, 255);
  }
  look_up_rows(in, out, tables);
}

static void equalize(const Image& in, const Image& out) {
  // neighbours are often equal, and a counter must be stored before it can be loaded again: two sets take turns
  uint32_t counts[2][3][256] = {};
  for (int y = 0; y < in.height; ++y) {
    const uint8_t* from = in.at(y);
    const int64_t bytes = in.row_bytes();
    if (in.channels == 1)
      for (int64_t i = 0; i < bytes; ++i) ++counts[i & 1][0][from[i]];
    else {
      int64_t i = 0;
      for (; i + 6 <= bytes; i += 6) {
        VTK_UNROLL for (int c = 0; c < 3; ++c) {
          ++counts[0][c][from[i + c]];
          ++counts[1][c][from[i + 3 + c]];
        }
      }
      for (; i < bytes; ++i) ++counts[0][i % 3][from[i]];
    }
  }
  Tables tables;
  for (int c = 0; c < std::min(in.channels, 3); ++c) {
    int64_t last = 0, total = 0;
    for (int v = 0; v < 256; ++v) {
      const int64_t count = counts[0][c][v] += counts[1][c][v];
      total += count;
      if (count) last = count;
    }
    const int64_t step = (total - last) / 255;
    int64_t sum = step / 2;
    for (int v = 0; v < 256; ++v) {
      tables.of[c][v] = step ? (uint8_t)std::min<int64_t>(sum / step, 255) : (uint8_t)v;
      sum += counts[0][c][v];
    }
  }
  look_up_rows(in, out, tables);
}

// ---- mixed with a degenerate image ------------------------------------------------------------------------------------
// factor 0 is the degenerate image, 1 the image, anything else the line through both
VTK_INLINE uint8_t blend(int degenerate, int value, float factor) {
  const float mixed = (float)degenerate + factor * (float)(value - degenerate);
  return (uint8_t)(int)std::min(std::max(mixed, 0.0f), 255.0f);
}

VTK_INLINE int luma(const uint8_t* rgb) { return (rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16; }

static void color(const Image& in, const Image& out, float factor) {
  if (in.channels == 1) return copy_image(in, out);
  each_row(in, out, [&](const uint8_t* from, uint8_t* to, int64_t bytes) {
    for (int64_t x = 0; x < bytes / 3; ++x) {
      const int gray = luma(from + 3 * x);
      const uint8_t r = blend(gray, from[3 * x], factor), g = blend(gray, from[3 * x + 1], factor), b = blend(gray, from[3 * x + 2], factor);
      to[3 * x] = r;
      to[3 * x + 1] = g;
      to[3 * x + 2] = b;
    }
  });
}

static void contrast(const Image& in, const Image& out, float factor) {
  int64_t sum = 0;
  each_row(in, out, [&](const uint8_t* from, uint8_t*, int64_t bytes) {
    // 32 bits hold the sum of 65536 pixels
    for (int64_t begin = 0; begin < bytes; begin += 3 << 16) {
      const int64_t end = std::min<int64_t>(begin + (3 << 16), bytes);
      uint32_t part = 0;
      if (in.channels == 1)
        for (int64_t i = begin; i < end; ++i) part += from[i];
      else
        for (int64_t i = begin; i < end; i += 3) part += (uint32_t)luma(from + i);
      sum += part;
    }
  });
  const int mean = (int)((double)sum / ((double)in.height * in.width) + 0.5);
  each_byte(in, out, [=](uint8_t v) { return blend(mean, v, factor); });
}

// `copy` holds the image's bytes where `in` is `out`
static void sharpness(const Image& in, const Image& out, float factor, uint8_t* copy) {
  if (in.height < 3 || in.width < 3) return copy_image(in, out);
  Image from = in;
  if (in.pixels == out.pixels) {
    from = {copy, in.row_bytes(), in.height, in.width, in.channels};
    copy_image(in, from);
  }
  const int64_t bytes = from.row_bytes();
  const int d = from.channels;
  std::memcpy(out.at(0), from.at(0), bytes);
  std::memcpy(out.at(from.height - 1), from.at(from.height - 1), bytes);
  for (int y = 1; y < from.height - 1; ++y) {
    const uint8_t *above = from.at(y - 1), *here = from.at(y), *below = from.at(y + 1);
    uint8_t* __restrict to = out.at(y);
    std::memcpy(to, here, d);
    std::memcpy(to + bytes - d, here + bytes - d, d);
    for (int64_t i = d; i < bytes - d; ++i) {
      const uint16_t ring = (uint16_t)(above[i - d] + above[i] + above[i + d] + here[i - d] + here[i + d] + below[i - d] + below[i] + below[i + d]);
      // rounded thirteenths: a sum of integers is never halfway between two
      const uint16_t smooth = (uint16_t)((uint16_t)(ring + 5 * here[i] + 6) / 13);
      to[i] = blend(smooth, here[i], factor);
    }
  }
}

}  // namespace vtk::VTK_ISA
