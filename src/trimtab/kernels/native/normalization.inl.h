// Layer normalisation over the last axis, with an optional residual added first, and its gradient.
// Statistics are recomputed in the backward pass: the row is in cache anyway, so nothing is kept.
#include "rows.h"

namespace {

// dx for one row; adds this row's part to the gradients of scale and bias.
template <typename T>
TRIMTAB_INLINE void backward_row(float* row, const float* scale, const T* cotangent, T* out,
                                 float* scale_sum, float* bias_sum, int64_t size, float epsilon) {
  const Moments m = moments(row, size, epsilon);
  Floats plain_sum{}, aligned_sum{};
  auto gather = [&](Floats x, Floats g, Floats gain, Floats* scale_part, Floats* bias_part) {
    const Floats normal = (x - m.mean) * m.inverse_deviation;
    *scale_part += g * normal;
    *bias_part += g;
    plain_sum += g * gain;
    aligned_sum += g * gain * normal;
    return normal;
  };
  for_lanes(
      size,
      [&](int64_t i) {
        Floats scale_part = load(scale_sum + i), bias_part = load(bias_sum + i);
        const Floats normal =
            gather(load(row + i), load(cotangent + i), load(scale + i), &scale_part, &bias_part);
        store(row + i, normal);
        store(scale_sum + i, scale_part);
        store(bias_sum + i, bias_part);
      },
      [&](int64_t i, int64_t rest) {
        Floats scale_part = load_first(scale_sum + i, rest);
        Floats bias_part = load_first(bias_sum + i, rest);
        const Floats normal = gather(load_first(row + i, rest), load_first(cotangent + i, rest),
                                     load_first(scale + i, rest), &scale_part, &bias_part);
        store_first(row + i, normal, rest);
        store_first(scale_sum + i, scale_part, rest);
        store_first(bias_sum + i, bias_part, rest);
      });
  const float plain = sum_of_lanes(plain_sum) / static_cast<float>(size);
  const float aligned = sum_of_lanes(aligned_sum) / static_cast<float>(size);
  auto finish = [&](Floats normal, Floats g, Floats gain) {
    return m.inverse_deviation * (g * gain - plain - normal * aligned);
  };
  for_lanes(
      size,
      [&](int64_t i) {
        store(out + i, finish(load(row + i), load(cotangent + i), load(scale + i)));
      },
      [&](int64_t i, int64_t rest) {
        store_first(out + i,
                    finish(load_first(row + i, rest), load_first(cotangent + i, rest),
                           load_first(scale + i, rest)),
                    rest);
      });
}

// x and residual are [batch..., rows, size]; scale and bias are [batch..., size].
struct Layout {
  int64_t size, batch, rows;
};

TRIMTAB_INLINE Layout layout(const Buffer& x, const Buffer& scale) {
  const int64_t size = size_from_end(x, 1);
  const int64_t batch = size == 0 ? 0 : elements(scale) / size;
  return {size, batch, batch == 0 ? 0 : elements(x) / size / batch};
}

TRIMTAB_INLINE const char* check(const Call& call, int with_residual) {
  for (int i = 0; i < call.argument_count; ++i)
    if (!is_float(call.arguments[i])) return "layer_norm takes float32, bfloat16 and float16 only";
  const Buffer& x = call.arguments[0];
  const Buffer& scale = call.arguments[1 + with_residual];
  if (x.rank < 1 || scale.rank < 1 || size_from_end(x, 1) != size_from_end(scale, 1))
    return "layer_norm needs a scale as long as the last axis of x";
  if (with_residual && elements(call.arguments[1]) != elements(x))
    return "layer_norm needs a residual of the shape of x";
  return nullptr;
}

const char* forward(const Call& call, int with_residual) {
  if (const char* problem = check(call, with_residual)) return problem;
  const Buffer& x = call.arguments[0];
  const Layout at = layout(x, call.arguments[1 + with_residual]);
  if (at.rows == 0) return nullptr;
  const float* scale = as_float32(call.arguments[1 + with_residual], 0);
  const float* bias = as_float32(call.arguments[2 + with_residual], 1);
  if (scale == nullptr || bias == nullptr) return "out of memory";
  const float epsilon = static_cast<float>(real_attribute(call, "epsilon", 1e-12));
  const int64_t all_rows = at.batch * at.rows;
  const int64_t step = larger(1, 16384 / at.size);
  bool starved = false;
  with_float_type(x, [&](auto* data) {
    using T = __typeof__(*data);
    const auto* residual =
        with_residual ? static_cast<__typeof__(data)>(call.arguments[1].data) : nullptr;
    auto* out = static_cast<__typeof__(data)>(call.results[0].data);
    (void)sizeof(T);
    parallel(ceil_div(all_rows, step), [&](int64_t chunk) {
      float* row = static_cast<float*>(trimtab::scratch(at.size * sizeof(float), 2));
      if (row == nullptr) {
        __atomic_store_n(&starved, true, __ATOMIC_RELAXED);
        return;
      }
      for (int64_t r = chunk * step; r < smaller(all_rows, (chunk + 1) * step); ++r) {
        const int64_t base = r * at.size, shared = r / at.rows * at.size;
        sum_row(data + base, residual ? residual + base : nullptr, row, at.size);
        normalise_row(row, scale + shared, bias + shared, out + base, at.size, epsilon);
      }
    });
  });
  return starved ? "out of memory" : nullptr;
}

// Adds the partial sums of all chunks of one batch in a fixed order.
template <typename T>
void reduce_partials(const float* partials, int64_t chunks, int64_t stride, T* out, int64_t size) {
  for_lanes(
      size,
      [&](int64_t i) {
        Floats total{};
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
          total += load(partials + chunk * stride + i);
        store(out + i, total);
      },
      [&](int64_t i, int64_t rest) {
        Floats total{};
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
          total += load_first(partials + chunk * stride + i, rest);
        store_first(out + i, total, rest);
      });
}

void zero(const Buffer& buffer) {
  with_float_type(buffer, [&](auto* data) {
    memset(static_cast<void*>(data), 0, static_cast<size_t>(elements(buffer)) * sizeof(*data));
  });
}

// Arguments x, [residual,] scale, cotangent; results dx (also the residual's), dscale, dbias.
const char* backward(const Call& call, int with_residual) {
  if (const char* problem = check(call, with_residual)) return problem;
  const Buffer& x = call.arguments[0];
  const Layout at = layout(x, call.arguments[1 + with_residual]);
  if (at.rows == 0) {
    zero(call.results[1]);
    zero(call.results[2]);
    return nullptr;
  }
  const float* scale = as_float32(call.arguments[1 + with_residual], 0);
  const float epsilon = static_cast<float>(real_attribute(call, "epsilon", 1e-12));
  // At most 256 partial sums a batch, whatever the number of threads.
  const int64_t step = larger(8, ceil_div(at.rows, 256));
  const int64_t chunks = ceil_div(at.rows, step), stride = 2 * at.size;
  float* partials = static_cast<float*>(
      trimtab::scratch(sizeof(float) * static_cast<size_t>(at.batch * chunks * stride), 1));
  if (scale == nullptr || partials == nullptr) return "out of memory";
  bool starved = false;
  with_float_type(x, [&](auto* data) {
    using Pointer = __typeof__(data);
    const auto* residual = with_residual ? static_cast<Pointer>(call.arguments[1].data) : nullptr;
    const auto* cotangent = static_cast<Pointer>(call.arguments[2 + with_residual].data);
    auto* out = static_cast<Pointer>(call.results[0].data);
    parallel(at.batch * chunks, [&](int64_t chunk) {
      float* row = static_cast<float*>(trimtab::scratch(at.size * sizeof(float), 2));
      if (row == nullptr) {
        __atomic_store_n(&starved, true, __ATOMIC_RELAXED);
        return;
      }
      const int64_t group = chunk / chunks, first = chunk % chunks * step;
      float* sums = partials + chunk * stride;
      memset(sums, 0, static_cast<size_t>(stride) * sizeof(float));
      for (int64_t r = first; r < smaller(at.rows, first + step); ++r) {
        const int64_t base = (group * at.rows + r) * at.size;
        sum_row(data + base, residual ? residual + base : nullptr, row, at.size);
        backward_row(row, scale + group * at.size, cotangent + base, out + base, sums,
                     sums + at.size, at.size, epsilon);
      }
    });
  });
  if (starved) return "out of memory";
  for (int which = 0; which < 2; ++which)
    with_float_type(call.results[1 + which], [&](auto* sum) {
      for (int64_t group = 0; group < at.batch; ++group)
        reduce_partials(partials + group * chunks * stride + which * at.size, chunks, stride,
                        sum + group * at.size, at.size);
    });
  return nullptr;
}

const char* layer_norm(const Call& call) { return forward(call, 0); }
const char* layer_norm_backward(const Call& call) { return backward(call, 0); }
const char* residual_layer_norm(const Call& call) { return forward(call, 1); }
const char* residual_layer_norm_backward(const Call& call) { return backward(call, 1); }

}  // namespace

TRIMTAB_EXPORT({"layer_norm", layer_norm}, {"layer_norm_backward", layer_norm_backward},
               {"residual_layer_norm", residual_layer_norm},
               {"residual_layer_norm_backward", residual_layer_norm_backward})
