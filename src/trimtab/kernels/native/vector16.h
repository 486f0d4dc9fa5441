// Sixteen-lane vectors in the compiler's vector extension: the same source becomes one AVX-512
// register, two AVX2 registers or four SSE registers. Only what the compiler cannot find by itself
// (integer dot products, half conversions, fused multiply-add) is written per instruction set.
//
// Sums over lanes and blocks have one order on every level, so that results are comparable.
#pragma once

#include "kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#define TRIMTAB_LAMBDA __attribute__((always_inline))

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint8_t B64 __attribute__((vector_size(64)));

TRIMTAB_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

TRIMTAB_INLINE F16 splat(float x) {
#if defined(__AVX512F__)
    return (F16)_mm512_set1_ps(x);
#else
    return F16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#endif
}
TRIMTAB_INLINE I16 splat_int(int32_t x) {
#if defined(__AVX512F__)
    return (I16)_mm512_set1_epi32(x);
#else
    return I16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#endif
}

template <class V>
TRIMTAB_INLINE V load(const void* from) {
    V v;
    memcpy(&v, from, sizeof(V));
    return v;
}
template <class V>
TRIMTAB_INLINE void store(void* to, V v) {
    memcpy(to, &v, sizeof(V));
}
// The first `count` lanes from memory, zero in the rest; nothing past them is touched.
TRIMTAB_INLINE F16 load_part(const float* from, int64_t count) {
    if (count >= 16) return load<F16>(from);
    F16 v = splat(0.0f);
    memcpy(&v, from, (size_t)count * sizeof(float));
    return v;
}
TRIMTAB_INLINE void store_part(float* to, F16 v, int64_t count) {
    if (count >= 16) {
        store(to, v);
    } else {
        memcpy(to, &v, (size_t)count * sizeof(float));
    }
}

TRIMTAB_INLINE F16 fma16(F16 a, F16 b, F16 c) {
#if defined(__AVX512F__)
    return (F16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    union Halves {
        F16 v;
        __m256 h[2];
    };
    Halves x, y, z;
    x.v = a, y.v = b, z.v = c;
    z.h[0] = _mm256_fmadd_ps(x.h[0], y.h[0], z.h[0]);
    z.h[1] = _mm256_fmadd_ps(x.h[1], y.h[1], z.h[1]);
    return z.v;
#else
    return a * b + c;
#endif
}
TRIMTAB_INLINE F16 to_float(I16 v) { return __builtin_convertvector(v, F16); }

TRIMTAB_INLINE F16 max16(F16 a, F16 b) {
#if defined(__AVX512F__)
    return (F16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}
TRIMTAB_INLINE F16 min16(F16 a, F16 b) {
#if defined(__AVX512F__)
    return (F16)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return a < b ? a : b;
#endif
}
TRIMTAB_INLINE F16 abs16(F16 a) { return (F16)((I16)a & splat_int(0x7fffffff)); }

// Lane sums in a fixed tree, so that every instruction set adds in the same order.
TRIMTAB_INLINE float sum_lanes(F16 v) {
    float x[16];
    store(x, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}
TRIMTAB_INLINE float max_lanes(F16 v) {
    float x[16];
    store(x, v);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
    return x[0];
}

// ---------------------------------------------------------------------------- half formats
TRIMTAB_INLINE float half_to_float(uint16_t bits) {
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#else
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, magnitude = bits & 0x7fff, word;
    float value;
    if (magnitude >= 0x7c00) {
        word = sign | 0x7f800000u | ((magnitude & 0x3ff) << 13);
        memcpy(&value, &word, 4);
        return value;
    }
    // Scaling by 2^112 moves the exponent and normalises subnormal halves at once.
    word = magnitude << 13;
    memcpy(&value, &word, 4);
    value *= 5192296858534827628530496329220096.0f;
    return sign ? -value : value;
#endif
}
TRIMTAB_INLINE F16 halves_to_float(const void* from) {
#if defined(__AVX512F__)
    return (F16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#else
    uint16_t bits[16];
    memcpy(bits, from, 32);
    F16 v;
    for (int i = 0; i < 16; i++) v[i] = half_to_float(bits[i]);
    return v;
#endif
}
TRIMTAB_INLINE float bfloat_to_float(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}
// Round to nearest, ties to even; NaN stays NaN.
TRIMTAB_INLINE uint16_t float_to_bfloat(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    if ((word & 0x7fffffff) > 0x7f800000) return (uint16_t)((word >> 16) | 0x40);
    return (uint16_t)((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}
TRIMTAB_INLINE F16 bfloats_to_float(const void* from) {
    typedef uint16_t H16 __attribute__((vector_size(32)));
    U16 wide = __builtin_convertvector(load<H16>(from), U16);
    return (F16)(wide << 16);
}

// ---------------------------------------------------------------------------- integer dots
TRIMTAB_INLINE I16 dot4_bytes(I16 acc, B64 weights, int32_t x, int32_t offset) {
    for (int i = 0; i < 4; i++)
        acc += ((I16)(((U16)weights >> (uint32_t)(8 * i)) & 255u) - offset) *
               (int32_t)(int8_t)(x >> (8 * i));
    return acc;
}
// acc[lane] += sum over the 4 bytes of a lane of weight * x, weights below 128 / signed weights.
// Sums are exact, hence equal on every instruction set.
TRIMTAB_INLINE I16 dot4(I16 acc, B64 weights, int32_t x) {
#if defined(__AVX512VNNI__)
    return (I16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)weights, _mm512_set1_epi32(x));
#elif defined(__AVX2__)
    union Halves {
        B64 v;
        __m256i h[2];
    };
    union Sums {
        I16 v;
        __m256i h[2];
    };
    Halves w;
    Sums s;
    w.v = weights, s.v = acc;
    __m256i values = _mm256_set1_epi32(x), ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; i++)
        s.h[i] = _mm256_add_epi32(
            s.h[i], _mm256_madd_epi16(_mm256_maddubs_epi16(w.h[i], values), ones));
    return s.v;
#else
    return dot4_bytes(acc, weights, x, 0);
#endif
}
// The same for weights stored as value + 128. With VNNI the bias stays in the sum and is taken out
// by its starting value (`biased_dot` below says so); elsewhere the signed value is used directly,
// because 16-bit pair sums of unsigned 8-bit weights would saturate.
#if defined(__AVX512VNNI__)
constexpr bool biased_dot = true;
TRIMTAB_INLINE I16 dot4_signed(I16 acc, B64 weights, int32_t x) { return dot4(acc, weights, x); }
#else
constexpr bool biased_dot = false;
TRIMTAB_INLINE I16 dot4_signed(I16 acc, B64 weights, int32_t x) {
#if defined(__AVX2__)
    union Halves {
        B64 v;
        __m256i h[2];
    };
    union Sums {
        I16 v;
        __m256i h[2];
    };
    Halves w;
    Sums s;
    w.v = weights, s.v = acc;
    __m256i values = _mm256_set1_epi32(x), ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; i++) {
        __m256i plain = _mm256_xor_si256(w.h[i], _mm256_set1_epi8((char)0x80));
        __m256i pairs =
            _mm256_maddubs_epi16(_mm256_abs_epi8(plain), _mm256_sign_epi8(values, plain));
        s.h[i] = _mm256_add_epi32(s.h[i], _mm256_madd_epi16(pairs, ones));
    }
    return s.v;
#else
    return dot4_bytes(acc, weights, x, 128);
#endif
}
#endif

// acc[lane] += w[2 lane] * x[0] + w[2 lane + 1] * x[1] for bfloat16 pairs held in 32-bit lanes.
TRIMTAB_INLINE F16 dot2_bfloat(F16 acc, U16 weights, uint32_t pair) {
#if defined(__AVX512BF16__)
    return (F16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)weights,
                                 (__m512bh)_mm512_set1_epi32((int)pair));
#else
    F16 even = (F16)(weights << 16), odd = (F16)(weights & 0xffff0000u);
    acc = fma16(odd, splat(bfloat_to_float((uint16_t)(pair >> 16))), acc);
    return fma16(even, splat(bfloat_to_float((uint16_t)pair)), acc);
#endif
}

// ---------------------------------------------------------------------------- functions
// exp with a relative error below 2 ulp; 0 under -87, and held at exp(88) above 88 (finite, so that
// a logistic function of large arguments divides by a number).
TRIMTAB_INLINE F16 exp16(F16 x) {
    const F16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
    F16 clamped = min16(max16(x, splat(-87.0f)), splat(88.0f));
    F16 shifted = fma16(clamped, splat(1.442695041f), magic);
    F16 whole = shifted - magic;
    F16 rest = fma16(whole, splat(-0.693359375f), clamped);
    rest = fma16(whole, splat(2.12194440e-4f), rest);
    F16 p = splat(1.9875691500e-4f);
    p = fma16(p, rest, splat(1.3981999507e-3f));
    p = fma16(p, rest, splat(8.3334519073e-3f));
    p = fma16(p, rest, splat(4.1665795894e-2f));
    p = fma16(p, rest, splat(1.6666665459e-1f));
    p = fma16(p, rest, splat(5.0000001201e-1f));
    p = fma16(p * rest, rest, rest + splat(1.0f));
    I16 power = (I16)shifted << 23;
    F16 result = (F16)((I16)p + power);
    return (F16)((I16)result & (I16)(x > splat(-87.0f)));
}

}  // namespace
