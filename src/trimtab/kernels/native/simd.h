// Float vectors as wide as the instruction set being compiled for, over float32, bfloat16 and
// float16 memory. Built on the compiler's vector extension, so +, -, *, / and ?: work as written
// and one source serves every level; arithmetic is always in float32.
#pragma once

#include "kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TRIMTAB_ANY_AVX512 (TRIMTAB_AVX512F || TRIMTAB_AVX512 || TRIMTAB_AMX)

namespace {

#if TRIMTAB_ANY_AVX512
constexpr int kLanes = 16;
#elif TRIMTAB_AVX2
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef float FloatsAnywhere __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint16_t HalvesAnywhere __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

TRIMTAB_INLINE Floats all(float value) { return value - Floats{}; }
TRIMTAB_INLINE Ints all_ints(int32_t value) { return value - Ints{}; }

// ---- one element ---------------------------------------------------------------------------

TRIMTAB_INLINE float to_float(float value) { return value; }

TRIMTAB_INLINE float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

TRIMTAB_INLINE float to_float(Float16 value) {
  // Exponent and mantissa moved into place are off by a factor of 2^112, subnormals included.
  const uint32_t magnitude = (value.bits & 0x7FFFu) << 13, sign = (value.bits & 0x8000u) << 16;
  float out;
  memcpy(&out, &magnitude, 4);
  out *= 0x1p112f;
  uint32_t bits;
  memcpy(&bits, &out, 4);
  if (magnitude >= 0x0F800000u) bits = magnitude | 0x7F800000u;  // infinity and NaN
  bits |= sign;
  memcpy(&out, &bits, 4);
  return out;
}

TRIMTAB_INLINE void from_float(float value, float* out) { *out = value; }

TRIMTAB_INLINE void from_float(float value, BFloat16* out) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
  out->bits = static_cast<uint16_t>(value != value ? (bits >> 16 | 0x40u) : rounded);
}

TRIMTAB_INLINE void from_float(float value, Float16* out) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u;
  } else if (magnitude >= 0x477FF000u) {  // rounds to infinity
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {
    // Adding 0.5 lines the subnormal half's last place up with the float's, which then rounds.
    float small;
    memcpy(&small, &magnitude, 4);
    small += 0.5f;
    memcpy(&half, &small, 4);
    half -= 0x3F000000u;
  } else {
    half = (magnitude + 0xFFFu + (magnitude >> 13 & 1) - 0x38000000u) >> 13;
  }
  out->bits = static_cast<uint16_t>(half | sign);
}

// ---- whole vectors -------------------------------------------------------------------------

TRIMTAB_INLINE Floats load(const float* p) { return *reinterpret_cast<const FloatsAnywhere*>(p); }

TRIMTAB_INLINE Floats load(const BFloat16* p) {
  const Halves bits = *reinterpret_cast<const HalvesAnywhere*>(p);
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

TRIMTAB_INLINE Floats load(const Float16* p) {
#if TRIMTAB_ANY_AVX512
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif TRIMTAB_AVX2
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Floats out;
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = to_float(p[lane]);
  return out;
#endif
}

TRIMTAB_INLINE void store(float* p, Floats value) { *reinterpret_cast<FloatsAnywhere*>(p) = value; }

TRIMTAB_INLINE void store(BFloat16* p, Floats value) {
  const Words bits = (Words)value;
  const Words rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  const Words chosen = value != value ? (bits >> 16 | 0x40u) : rounded;
  *reinterpret_cast<HalvesAnywhere*>(p) = __builtin_convertvector(chosen, Halves);
}

TRIMTAB_INLINE void store(Float16* p, Floats value) {
#if TRIMTAB_ANY_AVX512
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)value, 0));
#elif TRIMTAB_AVX2
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)value, 0));
#else
  for (int lane = 0; lane < kLanes; ++lane) from_float(value[lane], p + lane);
#endif
}

// The first `count` < kLanes elements; the other lanes read as zero and are not written.
template <typename T>
TRIMTAB_INLINE Floats load_first(const T* p, int64_t count) {
  T padded[kLanes] = {};
  memcpy(padded, p, static_cast<size_t>(count) * sizeof(T));
  return load(padded);
}

template <typename T>
TRIMTAB_INLINE void store_first(T* p, Floats value, int64_t count) {
  T padded[kLanes];
  store(padded, value);
  memcpy(p, padded, static_cast<size_t>(count) * sizeof(T));
}

TRIMTAB_INLINE float sum_of_lanes(Floats value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

// e^x within 2 units in the last place; e^-87 below -87, infinity above 88.37, NaN for NaN.
TRIMTAB_INLINE Floats exponential(Floats given) {
  Floats x = given < -87.0f ? all(-87.0f) : given;
  x = x > 88.37f ? all(88.37f) : x;
  const Floats magic = all(0x1.8p23f);  // Adding it rounds to an integer in the low bits.
  const Floats shifted = x * 1.44269504088896341f + magic;
  const Floats n = shifted - magic;
  const Floats r = x - n * 0.693145751953125f - n * 1.42860682030941723212e-6f;
  Floats p = all(1.98756915e-4f);
  p = p * r + 1.39819995e-3f;
  p = p * r + 8.33345205e-3f;
  p = p * r + 4.16657963e-2f;
  p = p * r + 1.66666655e-1f;
  p = p * r + 5.00000012e-1f;
  p = p * r * r + r + 1.0f;
  const Ints exponent = (Ints)shifted << 23;  // The magic's own bits vanish to the left.
  const Floats result = (Floats)((Ints)p + exponent);
  return given > 88.37f ? all(__builtin_inff()) : given != given ? given : result;
}

// Calls body(offset, load, store) style loops: whole vectors first, then one tail of `count`.
template <typename Whole, typename Tail>
TRIMTAB_INLINE void for_lanes(int64_t size, const Whole& whole, const Tail& tail) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) whole(i);
  if (i < size) tail(i, size - i);
}

// ---- arrays of a type known at run time -------------------------------------------------------

TRIMTAB_INLINE bool is_float(const Buffer& buffer) {
  return buffer.type == DataType::float32 || buffer.type == DataType::bfloat16 ||
         buffer.type == DataType::float16;
}

// Calls body(pointer to the element type); the caller has checked is_float.
template <typename Body>
TRIMTAB_INLINE void with_float_type(const Buffer& buffer, const Body& body) {
  switch (buffer.type) {
    case DataType::float32: return body(static_cast<float*>(buffer.data));
    case DataType::bfloat16: return body(static_cast<BFloat16*>(buffer.data));
    default: return body(static_cast<Float16*>(buffer.data));
  }
}

template <typename T>
void widen(const T* from, float* to, int64_t size) {
  for_lanes(
      size, [&](int64_t i) { store(to + i, load(from + i)); },
      [&](int64_t i, int64_t rest) { store_first(to + i, load_first(from + i, rest), rest); });
}

template <typename T>
void narrow(const float* from, T* to, int64_t size) {
  for_lanes(
      size, [&](int64_t i) { store(to + i, load(from + i)); },
      [&](int64_t i, int64_t rest) { store_first(to + i, load_first(from + i, rest), rest); });
}

// A float32 copy of a small array (parameters) in the caller's scratch slot.
[[maybe_unused]] const float* as_float32(const Buffer& buffer, int slot) {
  const int64_t size = elements(buffer);
  float* copy =
      static_cast<float*>(trimtab::scratch(static_cast<size_t>(size) * sizeof(float), slot));
  if (copy == nullptr) return nullptr;
  with_float_type(buffer, [&](auto* data) { widen(data, copy, size); });
  return copy;
}

}  // namespace
