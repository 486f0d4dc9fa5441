// Square tiles of kLanes x kLanes floats, and a vector back to front.
#pragma once

#include "simd.h"

namespace {

#if TRIMTAB_ANY_AVX512

TRIMTAB_INLINE Floats reversed(Floats value) {
  const __m512i order = _mm512_set_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return (Floats)_mm512_permutexvar_ps(order, (__m512)value);
}

// out[i * out_stride + j] = in[j * in_stride + i]
TRIMTAB_INLINE void transpose_tile(const float* in, int64_t in_stride, float* out,
                                   int64_t out_stride) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(in + i * in_stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int half = 0; half < 2; ++half) {
      const __m512d low = _mm512_castps_pd(b[i + half]), high = _mm512_castps_pd(b[i + half + 2]);
      a[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  // a[4 g + c] holds, in its quarter q, rows 4 g .. 4 g + 3 of column 4 q + c.
  for (int c = 0; c < 4; ++c) {
    const __m512 p = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x44);
    const __m512 q = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xEE);
    const __m512 r = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x44);
    const __m512 s = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xEE);
    _mm512_storeu_ps(out + c * out_stride, _mm512_shuffle_f32x4(p, r, 0x88));
    _mm512_storeu_ps(out + (4 + c) * out_stride, _mm512_shuffle_f32x4(p, r, 0xDD));
    _mm512_storeu_ps(out + (8 + c) * out_stride, _mm512_shuffle_f32x4(q, s, 0x88));
    _mm512_storeu_ps(out + (12 + c) * out_stride, _mm512_shuffle_f32x4(q, s, 0xDD));
  }
}

#elif TRIMTAB_AVX2

TRIMTAB_INLINE Floats reversed(Floats value) {
  const __m256i order = _mm256_set_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (Floats)_mm256_permutevar8x32_ps((__m256)value, order);
}

TRIMTAB_INLINE void transpose_tile(const float* in, int64_t in_stride, float* out,
                                   int64_t out_stride) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(in + i * in_stride);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xEE);
    a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xEE);
  }
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(out + c * out_stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x20));
    _mm256_storeu_ps(out + (4 + c) * out_stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x31));
  }
}

#else

TRIMTAB_INLINE Floats reversed(Floats value) {
  Floats out;
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = value[kLanes - 1 - lane];
  return out;
}

TRIMTAB_INLINE void transpose_tile(const float* in, int64_t in_stride, float* out,
                                   int64_t out_stride) {
  Floats rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = load(in + i * in_stride);
  for (int i = 0; i < kLanes; ++i) {
    Floats column;
    for (int j = 0; j < kLanes; ++j) column[j] = rows[j][i];
    store(out + i * out_stride, column);
  }
}

#endif

}  // namespace
