// Adam, and Adam whose gradient is scaled by its signal-to-noise ratio, as one pass over memory for
// the former and two for the latter: the first sums a layer's ratios, the second updates all state.
// Results may be the arguments' own memory: each element is read before it is written.
#include "simd.h"

namespace {

constexpr int64_t kStep = 1 << 15;  // elements a chunk: parts of 8 arrays fit the second-level cache
constexpr float kNoiseless = 1e30f;  // a ratio beyond counts as infinite, so that sums stay finite

TRIMTAB_INLINE Floats square_root(Floats x) {
#if TRIMTAB_ANY_AVX512
  return (Floats)_mm512_sqrt_ps((__m512)x);
#elif TRIMTAB_AVX2
  return (Floats)_mm256_sqrt_ps((__m256)x);
#else
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = __builtin_sqrtf(x[lane]);
  return x;
#endif
}

struct Adam {
  float rate, first_correction, second_correction, first_decay, second_decay, epsilon, weight_decay;
};

TRIMTAB_INLINE Adam adam_settings(const Call& call, const float* scalars) {
  return {scalars[0],
          scalars[1],
          scalars[2],
          static_cast<float>(real_attribute(call, "first_decay", 0.9)),
          static_cast<float>(real_attribute(call, "second_decay", 0.999)),
          static_cast<float>(real_attribute(call, "epsilon", 1e-8)),
          static_cast<float>(real_attribute(call, "weight_decay", 0.0))};
}

TRIMTAB_INLINE Floats stepped(const Adam& adam, Floats parameter, Floats gradient, Floats* first,
                              Floats* second) {
  *first = adam.first_decay * *first + (1.0f - adam.first_decay) * gradient;
  *second = adam.second_decay * *second + (1.0f - adam.second_decay) * gradient * gradient;
  const Floats scale = square_root(*second * adam.second_correction) + adam.epsilon;
  const Floats update = *first * adam.first_correction / scale;
  return parameter - adam.rate * (update + adam.weight_decay * parameter);
}

template <typename Whole, typename Tail>
TRIMTAB_INLINE void for_lanes_from(int64_t begin, int64_t end, const Whole& whole,
                                   const Tail& tail) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) whole(i);
  if (i < end) tail(i, end - i);
}

bool all_float32(const Call& call, int except) {
  for (int i = 0; i < call.argument_count; ++i)
    if (i != except && call.arguments[i].type != DataType::float32) return false;
  return true;
}

bool same_size(const Call& call, int arrays) {
  for (int i = 1; i < arrays; ++i)
    if (elements(call.arguments[i]) != elements(call.arguments[0])) return false;
  return true;
}

// Arguments parameter, gradient, first and second moment, scalars (rate and both bias corrections
// as factors); results parameter and moments.
const char* adam_step(const Call& call) {
  if (!all_float32(call, -1)) return "adam_step takes float32 only";
  if (!same_size(call, 4)) return "adam_step needs arrays of one size";
  if (elements(call.arguments[4]) != 3) return "adam_step needs three scalars";
  auto in = [&](int i) { return static_cast<const float*>(call.arguments[i].data); };
  auto out = [&](int i) { return static_cast<float*>(call.results[i].data); };
  const Adam adam = adam_settings(call, in(4));
  const float *parameter = in(0), *gradient = in(1), *first = in(2), *second = in(3);
  float *new_parameter = out(0), *new_first = out(1), *new_second = out(2);
  const int64_t size = elements(call.arguments[0]);
  parallel(ceil_div(size, kStep), [&](int64_t chunk) {
    for_lanes_from(
        chunk * kStep, smaller(size, (chunk + 1) * kStep),
        [&](int64_t i) {
          Floats m = load(first + i), v = load(second + i);
          const Floats moved = stepped(adam, load(parameter + i), load(gradient + i), &m, &v);
          store(new_parameter + i, moved);
          store(new_first + i, m);
          store(new_second + i, v);
        },
        [&](int64_t i, int64_t rest) {
          Floats m = load_first(first + i, rest), v = load_first(second + i, rest);
          const Floats moved = stepped(adam, load_first(parameter + i, rest),
                                       load_first(gradient + i, rest), &m, &v);
          store_first(new_parameter + i, moved, rest);
          store_first(new_first + i, m, rest);
          store_first(new_second + i, v, rest);
        });
  });
  return nullptr;
}

// Squared mean over population variance; infinite without noise, NaN with neither.
TRIMTAB_INLINE Floats noise_ratio(Floats mean, Floats deviations, float count) {
  const Floats positive = deviations > 0.0f ? deviations : all(0.0f);
  return mean * mean * count / positive;
}

struct RatioSum {
  float total, active;
};

RatioSum ratio_sum(const float* mean, const float* deviations, float count, int64_t begin,
                   int64_t end) {
  Floats totals[2] = {}, actives[2] = {};
  auto add = [&](Floats ratio, int chain) {
    const Ints usable = ratio <= kNoiseless;  // false for infinity and NaN
    totals[chain] += usable ? ratio : all(0.0f);
    actives[chain] += usable ? all(1.0f) : all(0.0f);
  };
  int64_t i = begin;
  for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
    add(noise_ratio(load(mean + i), load(deviations + i), count), 0);
    add(noise_ratio(load(mean + i + kLanes), load(deviations + i + kLanes), count), 1);
  }
  for (; i < end; i += kLanes) {
    const int64_t rest = smaller(end - i, kLanes);
    // Lanes past the end read zero by zero, whose ratio is not a number and does not count.
    add(noise_ratio(load_first(mean + i, rest), load_first(deviations + i, rest), count), 0);
  }
  return {sum_of_lanes(totals[0] + totals[1]), sum_of_lanes(actives[0] + actives[1])};
}

// Arguments parameter, mean gradient, squared deviations, moving average of the ratio (any float
// type), first and second moment, scalars (rate, both bias corrections, count of groups, share of
// the new ratio in its average); results parameter, average, moments.
const char* vr_adam_step(const Call& call) {
  if (!all_float32(call, 3) || !is_float(call.arguments[3]))
    return "vr_adam_step takes float32, and any float type for the ratio's average";
  if (!same_size(call, 6)) return "vr_adam_step needs arrays of one size";
  if (elements(call.arguments[6]) != 5) return "vr_adam_step needs five scalars";
  auto in = [&](int i) { return static_cast<const float*>(call.arguments[i].data); };
  auto out = [&](int i) { return static_cast<float*>(call.results[i].data); };
  const float* scalars = in(6);
  const Adam adam = adam_settings(call, scalars);
  const float count = scalars[3], share = scalars[4];
  const float low = static_cast<float>(real_attribute(call, "gamma", 0.1));
  const float high = static_cast<float>(real_attribute(call, "upper", 1.0));
  const float *parameter = in(0), *mean = in(1), *deviations = in(2), *first = in(4),
              *second = in(5);
  float *new_parameter = out(0), *new_first = out(2), *new_second = out(3);
  const int64_t size = elements(call.arguments[0]), chunks = ceil_div(size, kStep);
  if (size == 0) return nullptr;

  RatioSum* partial = static_cast<RatioSum*>(
      trimtab::scratch(sizeof(RatioSum) * static_cast<size_t>(chunks), 0));
  if (partial == nullptr) return "out of memory";
  parallel(chunks, [&](int64_t chunk) {
    partial[chunk] = ratio_sum(mean, deviations, count, chunk * kStep,
                               smaller(size, (chunk + 1) * kStep));
  });
  double total = 0.0, active = 0.0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    total += static_cast<double>(partial[chunk].total);
    active += static_cast<double>(partial[chunk].active);
  }
  const float inverse = static_cast<float>((active > 1.0 ? active : 1.0) / total);

  with_float_type(call.arguments[3], [&](auto* average) {
    auto* new_average = static_cast<__typeof__(average)>(call.results[1].data);
    auto factor = [&](Floats g, Floats spread, Floats past) {
      Floats ratio = noise_ratio(g, spread, count) * inverse;
      ratio = ratio > low ? ratio : all(low);  // NaN too becomes the lower limit
      ratio = ratio < high ? ratio : all(high);
      return past + (ratio - past) * share;
    };
    parallel(chunks, [&](int64_t chunk) {
      for_lanes_from(
          chunk * kStep, smaller(size, (chunk + 1) * kStep),
          [&](int64_t i) {
            const Floats g = load(mean + i);
            const Floats scale = factor(g, load(deviations + i), load(average + i));
            Floats m = load(first + i), v = load(second + i);
            const Floats moved = stepped(adam, load(parameter + i), scale * g, &m, &v);
            store(new_parameter + i, moved);
            store(new_average + i, scale);
            store(new_first + i, m);
            store(new_second + i, v);
          },
          [&](int64_t i, int64_t rest) {
            const Floats g = load_first(mean + i, rest);
            const Floats scale =
                factor(g, load_first(deviations + i, rest), load_first(average + i, rest));
            Floats m = load_first(first + i, rest), v = load_first(second + i, rest);
            const Floats moved =
                stepped(adam, load_first(parameter + i, rest), scale * g, &m, &v);
            store_first(new_parameter + i, moved, rest);
            store_first(new_average + i, scale, rest);
            store_first(new_first + i, m, rest);
            store_first(new_second + i, v, rest);
          });
    });
  });
  return nullptr;
}

}  // namespace

TRIMTAB_EXPORT({"adam_step", adam_step}, {"vr_adam_step", vr_adam_step})
