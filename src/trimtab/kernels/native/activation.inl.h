// gelu(x + bias), tanh form, and its gradient.
// gelu(u) = u / (1 + exp(-2 z)) with z = sqrt(2/pi) (u + 0.044715 u^3): one exponential, and no
// cancellation for negative u as in 0.5 u (1 + tanh z).
#include "simd.h"

namespace {

constexpr float kTwoRootTwoOverPi = 1.5957691216057308f;
constexpr float kCubic = 0.044715f;

TRIMTAB_INLINE Floats sigmoid_of_twice_z(Floats u) {
  const Floats twice_z = kTwoRootTwoOverPi * u * (1.0f + kCubic * u * u);
  return 1.0f / (1.0f + exponential(-twice_z));
}

TRIMTAB_INLINE Floats gelu(Floats u) { return u * sigmoid_of_twice_z(u); }

TRIMTAB_INLINE Floats gelu_slope(Floats given) {
  // Beyond 15 the slope is 0 or 1 to the bit; its cubic would overflow far out.
  const Floats low = given < -15.0f ? all(-15.0f) : given;
  const Floats u = low > 15.0f ? all(15.0f) : low;
  const Floats s = sigmoid_of_twice_z(u);
  const Floats slope_of_twice_z = kTwoRootTwoOverPi * (1.0f + 3.0f * kCubic * u * u);
  return s + u * s * (1.0f - s) * slope_of_twice_z;
}

// x is [batch..., rows, size], bias [batch..., size].
const char* check(const Call& call) {
  for (int i = 0; i < call.argument_count; ++i)
    if (!is_float(call.arguments[i])) return "bias_gelu takes float32, bfloat16 and float16 only";
  const Buffer &x = call.arguments[0], &bias = call.arguments[1];
  if (x.rank < 1 || bias.rank < 1 || size_from_end(x, 1) != size_from_end(bias, 1))
    return "bias_gelu needs a bias as long as the last axis of x";
  return nullptr;
}

const char* bias_gelu(const Call& call) {
  if (const char* problem = check(call)) return problem;
  const Buffer& x = call.arguments[0];
  const int64_t size = size_from_end(x, 1);
  if (elements(x) == 0) return nullptr;
  const float* bias = as_float32(call.arguments[1], 0);
  if (bias == nullptr) return "out of memory";
  const int64_t all_rows = elements(x) / size;
  const int64_t rows = all_rows / (elements(call.arguments[1]) / size);
  const int64_t step = larger(1, 16384 / size);
  with_float_type(x, [&](auto* data) {
    auto* out = static_cast<__typeof__(data)>(call.results[0].data);
    parallel(ceil_div(all_rows, step), [&](int64_t chunk) {
      for (int64_t r = chunk * step; r < smaller(all_rows, (chunk + 1) * step); ++r) {
        const auto* from = data + r * size;
        auto* to = out + r * size;
        const float* shared = bias + r / rows * size;
        for_lanes(
            size, [&](int64_t i) { store(to + i, gelu(load(from + i) + load(shared + i))); },
            [&](int64_t i, int64_t rest) {
              store_first(to + i, gelu(load_first(from + i, rest) + load_first(shared + i, rest)),
                          rest);
            });
      }
    });
  });
  return nullptr;
}

// Arguments x, bias, cotangent; results dx, dbias.
const char* bias_gelu_backward(const Call& call) {
  if (const char* problem = check(call)) return problem;
  const Buffer &x = call.arguments[0], &d_bias = call.results[1];
  const int64_t size = size_from_end(x, 1);
  if (elements(x) == 0) {
    with_float_type(d_bias, [&](auto* data) {
      memset(static_cast<void*>(data), 0, static_cast<size_t>(elements(d_bias)) * sizeof(*data));
    });
    return nullptr;
  }
  const int64_t batch = elements(call.arguments[1]) / size;
  const int64_t rows = elements(x) / size / batch;
  const float* bias = as_float32(call.arguments[1], 0);
  // At most 64 partial sums a batch, whatever the number of threads.
  const int64_t step = larger(8, ceil_div(rows, 64)), chunks = ceil_div(rows, step);
  float* partials = static_cast<float*>(
      trimtab::scratch(sizeof(float) * static_cast<size_t>(batch * chunks * size), 1));
  if (bias == nullptr || partials == nullptr) return "out of memory";
  with_float_type(x, [&](auto* data) {
    using Pointer = __typeof__(data);
    const auto* cotangent = static_cast<Pointer>(call.arguments[2].data);
    auto* out = static_cast<Pointer>(call.results[0].data);
    parallel(batch * chunks, [&](int64_t chunk) {
      const int64_t group = chunk / chunks, first = chunk % chunks * step;
      float* sums = partials + chunk * size;
      const float* shared = bias + group * size;
      memset(sums, 0, static_cast<size_t>(size) * sizeof(float));
      for (int64_t r = first; r < smaller(rows, first + step); ++r) {
        const int64_t base = (group * rows + r) * size;
        for_lanes(
            size,
            [&](int64_t i) {
              const Floats slope = gelu_slope(load(data + base + i) + load(shared + i));
              const Floats dx = slope * load(cotangent + base + i);
              store(out + base + i, dx);
              store(sums + i, load(sums + i) + dx);
            },
            [&](int64_t i, int64_t rest) {
              const Floats u = load_first(data + base + i, rest) + load_first(shared + i, rest);
              const Floats dx = gelu_slope(u) * load_first(cotangent + base + i, rest);
              store_first(out + base + i, dx, rest);
              store_first(sums + i, load_first(sums + i, rest) + dx, rest);
            });
      }
    });
  });
  with_float_type(d_bias, [&](auto* out) {
    for (int64_t group = 0; group < batch; ++group)
      for (int64_t i = 0; i < size; ++i) {
        float total = 0.0f;
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
          total += partials[(group * chunks + chunk) * size + i];
        from_float(total, out + group * size + i);
      }
  });
  return nullptr;
}

}  // namespace

TRIMTAB_EXPORT({"bias_gelu", bias_gelu}, {"bias_gelu_backward", bias_gelu_backward})
