// Layer normalisation of one row, shared by the kernels that end with it.
#pragma once

#include "simd.h"

namespace {

struct Moments {
  float mean;
  float inverse_deviation;
};

// Sums of f(i) over a row in four independent chains, so that additions overlap.
template <typename Term, typename TailTerm>
TRIMTAB_INLINE float row_sum(int64_t size, const Term& term, const TailTerm& tail_term) {
  Floats a{}, b{}, c{}, d{};
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    a += term(i);
    b += term(i + kLanes);
    c += term(i + 2 * kLanes);
    d += term(i + 3 * kLanes);
  }
  for (; i + kLanes <= size; i += kLanes) a += term(i);
  if (i < size) b += tail_term(i, size - i);
  return sum_of_lanes((a + b) + (c + d));
}

TRIMTAB_INLINE Moments moments(const float* row, int64_t size, float epsilon) {
  const float mean = row_sum(
                         size, [&](int64_t i) { return load(row + i); },
                         [&](int64_t i, int64_t rest) { return load_first(row + i, rest); }) /
                     static_cast<float>(size);
  const float squares = row_sum(
      size,
      [&](int64_t i) {
        const Floats centred = load(row + i) - mean;
        return centred * centred;
      },
      [&](int64_t i, int64_t rest) {
        // Lanes past the end must not count (0 - mean)^2.
        float padded[kLanes];
        store(padded, all(mean));
        memcpy(padded, row + i, static_cast<size_t>(rest) * sizeof(float));
        const Floats centred = load(padded) - mean;
        return centred * centred;
      });
  const float variance = squares / static_cast<float>(size);
  return {mean, 1.0f / __builtin_sqrtf(variance + epsilon)};
}

template <typename T>
TRIMTAB_INLINE void sum_row(const T* x, const T* residual, float* row, int64_t size) {
  if (residual == nullptr) return widen(x, row, size);
  for_lanes(
      size, [&](int64_t i) { store(row + i, load(x + i) + load(residual + i)); },
      [&](int64_t i, int64_t rest) {
        store_first(row + i, load_first(x + i, rest) + load_first(residual + i, rest), rest);
      });
}

template <typename T>
TRIMTAB_INLINE void normalise_row(const float* row, const float* scale, const float* bias, T* out,
                                  int64_t size, float epsilon) {
  const Moments m = moments(row, size, epsilon);
  for_lanes(
      size,
      [&](int64_t i) {
        store(out + i,
              (load(row + i) - m.mean) * (m.inverse_deviation * load(scale + i)) + load(bias + i));
      },
      [&](int64_t i, int64_t rest) {
        const Floats centred = load_first(row + i, rest) - m.mean;
        const Floats gain = m.inverse_deviation * load_first(scale + i, rest);
        store_first(out + i, centred * gain + load_first(bias + i, rest), rest);
      });
}

}  // namespace
