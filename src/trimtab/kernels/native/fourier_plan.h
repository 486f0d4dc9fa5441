// How a transform of a given length is cut into small ones, with its tables.
#pragma once

#include <stdint.h>

namespace trimtab {

// One step: `radix` interleaved transforms of length `rest` become one of length radix * rest.
struct FourierLevel {
  int32_t radix;
  int64_t rest;
  // cos and -sin of 2 pi j q / (radix rest) at [j][q - 1][2], 0 <= j < rest, 1 <= q < radix.
  const float* twiddles;
  // For odd radices: cos and sin of 2 pi j k / radix at [k - 1][j - 1][2], 1 <= j, k <= radix / 2.
  const float* rotations;
};

constexpr int kLargestRadix = 47;

// Outermost level first; the last one has rest == 1. Lengths with a prime factor above 47 are
// convolutions instead (Bluestein 1970): `inner` is then the plan of the convolution's length.
struct FourierPlan {
  int64_t size;
  int32_t level_count;
  FourierLevel levels[40];
  const FourierPlan* inner;
  const float* chirp;     // e^(-i pi k^2 / size) as (re, im), k < size
  const float* spectrum;  // transform of the conjugate chirp over inner->size, divided by that
};

// Plans are shared and kept for reuse, the least recently used ones up to a limit; each acquire
// needs a release. nullptr if there is no memory.
const FourierPlan* acquire_fourier_plan(int64_t size);
void release_fourier_plan(const FourierPlan* plan);

}  // namespace trimtab
