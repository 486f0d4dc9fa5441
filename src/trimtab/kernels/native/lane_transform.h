// kLanes complex Fourier transforms side by side, of any length.
//
// An element is a vector of real parts followed by a vector of imaginary parts, one lane a
// transform. Decimation in time, depth first: sub-transforms are finished while they are in the
// nearest cache, and the first pass reads its input wherever a `Source` finds it, so that loading,
// widening and pre-multiplying cost no pass of their own.
#pragma once

#include "fourier_plan.h"
#include "simd.h"

namespace {

struct Complex {
  Floats re, im;
};

constexpr int64_t kElement = 2 * kLanes;  // floats of one element

TRIMTAB_INLINE Complex load_complex(const float* p) { return {load(p), load(p + kLanes)}; }
TRIMTAB_INLINE void store_complex(float* p, Complex value) {
  store(p, value.re);
  store(p + kLanes, value.im);
}
TRIMTAB_INLINE Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
TRIMTAB_INLINE Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
TRIMTAB_INLINE Complex times(Complex a, float re, float im) {
  return {a.re * re - a.im * im, a.re * im + a.im * re};
}
TRIMTAB_INLINE Complex times_minus_i(Complex a) { return {a.im, -a.re}; }

// ---- butterflies, in place, output in order ------------------------------------------------

TRIMTAB_INLINE void butterfly2(Complex& a, Complex& b) {
  const Complex sum = a + b, difference = a - b;
  a = sum;
  b = difference;
}

TRIMTAB_INLINE void butterfly4(Complex& a, Complex& b, Complex& c, Complex& d) {
  const Complex p = a + c, q = a - c, r = b + d, s = times_minus_i(b - d);
  a = p + r;
  b = q + s;
  c = p - r;
  d = q - s;
}

TRIMTAB_INLINE void butterfly8(Complex* x) {
  constexpr float kRoot = 0.70710678118654752f;
  butterfly4(x[0], x[2], x[4], x[6]);
  butterfly4(x[1], x[3], x[5], x[7]);
  // Rotations by -45, -90 and -135 degrees.
  const Complex b = {(x[3].re + x[3].im) * kRoot, (x[3].im - x[3].re) * kRoot};
  const Complex c = times_minus_i(x[5]);
  const Complex d = {(x[7].im - x[7].re) * kRoot, (x[7].re + x[7].im) * -kRoot};
  const Complex y0 = x[0], y1 = x[2], y2 = x[4], y3 = x[6], a = x[1];
  x[0] = y0 + a;
  x[4] = y0 - a;
  x[1] = y1 + b;
  x[5] = y1 - b;
  x[2] = y2 + c;
  x[6] = y2 - c;
  x[3] = y3 + d;
  x[7] = y3 - d;
}

// X_k = x_0 + sum_j cos(jk) (x_j + x_-j) - i sum_j sin(jk) (x_j - x_-j)
// kRadix == 0 takes the radix at run time.
template <int kRadix>
TRIMTAB_INLINE void butterfly_odd(Complex* x, const float* rotations, int run_time_radix) {
  constexpr int kRoom = kRadix == 0 ? trimtab::kLargestRadix / 2 : kRadix / 2;
  const int radix = kRadix == 0 ? run_time_radix : kRadix, half = radix / 2;
  Complex even[kRoom], odd[kRoom];
  const Complex first = x[0];
  Complex total = first;
  for (int j = 0; j < half; ++j) {
    even[j] = x[1 + j] + x[radix - 1 - j];
    odd[j] = x[1 + j] - x[radix - 1 - j];
    total = total + even[j];
  }
  for (int k = 0; k < half; ++k, rotations += 2 * half) {
    Complex p = first, q = {Floats{}, Floats{}};
    for (int j = 0; j < half; ++j) {
      const float cosine = rotations[2 * j], sine = rotations[2 * j + 1];
      p = {p.re + even[j].re * cosine, p.im + even[j].im * cosine};
      q = {q.re + odd[j].re * sine, q.im + odd[j].im * sine};
    }
    x[1 + k] = {p.re + q.im, p.im - q.re};
    x[radix - 1 - k] = {p.re - q.im, p.im + q.re};
  }
  x[0] = total;
}

template <int kRadix>
TRIMTAB_INLINE void butterfly(Complex* x, const trimtab::FourierLevel& level) {
  if constexpr (kRadix == 2) {
    butterfly2(x[0], x[1]);
  } else if constexpr (kRadix == 4) {
    butterfly4(x[0], x[1], x[2], x[3]);
  } else if constexpr (kRadix == 8) {
    butterfly8(x);
  } else {
    butterfly_odd<kRadix>(x, level.rotations, level.radix);
  }
}

// ---- passes --------------------------------------------------------------------------------

template <int kRadix, typename Source>
void first_pass(const trimtab::FourierLevel& level, const Source& source, int64_t first,
                int64_t stride, float* out) {
  Complex x[kRadix == 0 ? trimtab::kLargestRadix : kRadix];
  const int radix = kRadix == 0 ? level.radix : kRadix;
  for (int q = 0; q < radix; ++q) x[q] = source(first + q * stride);
  butterfly<kRadix>(x, level);
  for (int q = 0; q < radix; ++q) store_complex(out + q * kElement, x[q]);
}

template <int kRadix>
void combine(const trimtab::FourierLevel& level, float* out) {
  const float* twiddle = level.twiddles;
  const int radix = kRadix == 0 ? level.radix : kRadix;
  const int64_t step = level.rest * kElement;
  for (int64_t j = 0; j < level.rest; ++j, out += kElement, twiddle += 2 * (radix - 1)) {
    Complex x[kRadix == 0 ? trimtab::kLargestRadix : kRadix];
    x[0] = load_complex(out);
    for (int q = 1; q < radix; ++q)
      x[q] = times(load_complex(out + q * step), twiddle[2 * q - 2], twiddle[2 * q - 1]);
    butterfly<kRadix>(x, level);
    for (int q = 0; q < radix; ++q) store_complex(out + q * step, x[q]);
  }
}

#define TRIMTAB_FOR_RADIX(radix, action) \
  switch (radix) {                       \
    case 2: action(2); break;            \
    case 3: action(3); break;            \
    case 4: action(4); break;            \
    case 5: action(5); break;            \
    case 7: action(7); break;            \
    case 8: action(8); break;            \
    case 11: action(11); break;          \
    case 13: action(13); break;          \
    default: action(0); break;           \
  }

template <typename Source>
void smooth_transform(const trimtab::FourierPlan& plan, int depth, const Source& source,
                      int64_t first, int64_t stride, float* out) {
  if (plan.level_count == 0) return store_complex(out, source(0));
  const trimtab::FourierLevel& level = plan.levels[depth];
  if (level.rest == 1) {
#define TRIMTAB_FIRST_PASS(radix) first_pass<radix>(level, source, first, stride, out)
    TRIMTAB_FOR_RADIX(level.radix, TRIMTAB_FIRST_PASS)
#undef TRIMTAB_FIRST_PASS
    return;
  }
  for (int q = 0; q < level.radix; ++q)
    smooth_transform(plan, depth + 1, source, first + q * stride, stride * level.radix,
                     out + q * level.rest * kElement);
#define TRIMTAB_COMBINE(radix) combine<radix>(level, out)
  TRIMTAB_FOR_RADIX(level.radix, TRIMTAB_COMBINE)
#undef TRIMTAB_COMBINE
}

// ---- sources -------------------------------------------------------------------------------

// Elements one after the other; `ahead` floats further lie those that will be wanted next.
struct Elements {
  const float* data;
  int64_t ahead;
  TRIMTAB_INLINE Complex operator()(int64_t i) const {
    const float* at = data + i * kElement;
    __builtin_prefetch(at + ahead, 0, 2);
    __builtin_prefetch(at + ahead + kLanes, 0, 2);
    return load_complex(at);
  }
};

// Two neighbouring vectors of a row-major float matrix as real and imaginary parts.
struct Columns {
  const float* data;
  int64_t row_stride;
  TRIMTAB_INLINE Complex operator()(int64_t i) const {
    const float* at = data + i * row_stride;
    // The next pair of vectors is the neighbour's, on the same page: rows are too far apart for the
    // hardware to guess.
    __builtin_prefetch(at + kElement, 0, 2);
    __builtin_prefetch(at + kElement + kLanes, 0, 2);
    return load_complex(at);
  }
};

// Bluestein's input: multiplied by the chirp, followed by zeros.
template <typename Source>
struct Chirped {
  const Source& source;
  const trimtab::FourierPlan& plan;
  TRIMTAB_INLINE Complex operator()(int64_t i) const {
    if (i >= plan.size) return {Floats{}, Floats{}};
    return times(source(i), plan.chirp[2 * i], plan.chirp[2 * i + 1]);
  }
};

// The product of two spectra with its parts exchanged, which makes the next transform inverse.
struct ExchangedProduct {
  const float* data;
  const float* spectrum;
  TRIMTAB_INLINE Complex operator()(int64_t i) const {
    const Complex product =
        times(load_complex(data + i * kElement), spectrum[2 * i], spectrum[2 * i + 1]);
    return {product.im, product.re};
  }
};

// Floats of work memory that `lane_transform` needs.
TRIMTAB_INLINE int64_t transform_floats(const trimtab::FourierPlan& plan) {
  return kElement * (plan.inner == nullptr ? plan.size : 2 * plan.inner->size);
}

// Returns plan.size elements inside `work`, in order.
template <typename Source>
float* lane_transform(const trimtab::FourierPlan& plan, const Source& source, float* work) {
  if (plan.inner == nullptr) {
    smooth_transform(plan, 0, source, 0, 1, work);
    return work;
  }
  const trimtab::FourierPlan& inner = *plan.inner;
  float* second = work + inner.size * kElement;
  smooth_transform(inner, 0, Chirped<Source>{source, plan}, 0, 1, work);
  smooth_transform(inner, 0, ExchangedProduct{work, plan.spectrum}, 0, 1, second);
  for (int64_t k = 0; k < plan.size; ++k) {
    float* element = second + k * kElement;
    const Complex exchanged = load_complex(element);
    store_complex(element,
                  times({exchanged.im, exchanged.re}, plan.chirp[2 * k], plan.chirp[2 * k + 1]));
  }
  return second;
}

}  // namespace
