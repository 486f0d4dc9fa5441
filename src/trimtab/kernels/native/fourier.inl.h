// The real part of the two-dimensional Fourier transform, alone or followed by residual sum and
// layer normalisation:  Y[k, m] = factor * sum_ij x[i, j] cos(2 pi (k i / n + m j / d)).
//
// Tokens first. Two neighbouring vectors of columns ride as real and imaginary part of one complex
// transform, which costs half of transforming them apart for any n. The half spectrum is stored in
// blocks of kLanes token frequencies, so that the transforms over features run side by side as
// well. The other half of the result is the first one mirrored: Y[-k, -m] = Y[k, m]. For even n the
// rows k = 0 and k = n / 2 are real after the first step and share one complex row.
#include "lane_transform.h"
#include "rows.h"
#include "transpose.h"

namespace {

// Keeps a plan for the length of a call.
struct PlanHold {
  const trimtab::FourierPlan* plan;
  explicit PlanHold(int64_t size) : plan(trimtab::acquire_fourier_plan(size)) {}
  ~PlanHold() {
    if (plan != nullptr) trimtab::release_fourier_plan(plan);
  }
  PlanHold(const PlanHold&) = delete;
  PlanHold& operator=(const PlanHold&) = delete;
};

// One example's transform.
struct Problem {
  int64_t tokens, width;
  const trimtab::FourierPlan* over_tokens;
  const trimtab::FourierPlan* over_width;
  float factor;

  int64_t frequencies() const { return (tokens + 1) / 2; }  // rows that are computed
  int64_t blocks() const { return ceil_div(frequencies(), kLanes); }
  int64_t column_groups() const { return ceil_div(width, 2 * kLanes); }
  bool shared_row() const { return tokens % 2 == 0; }
  // Rows of results keep apart in the cache even if width is a power of two.
  int64_t row_stride() const { return ceil_div(width, kLanes) * kLanes + kLanes; }
  int64_t spectrum_floats() const { return blocks() * width * kElement; }
};

constexpr int kSpectrumSlot = 0, kWorkSlot = 1, kRowSlot = 2, kParameterSlot = 3;

TRIMTAB_INLINE float* floats_of_scratch(int64_t count, int slot) {
  return static_cast<float*>(trimtab::scratch(static_cast<size_t>(count) * sizeof(float), slot));
}

// ---- first step: over tokens ---------------------------------------------------------------

// Copies up to 2 kLanes columns as elements, widened and filled up with zeros.
template <typename T>
void gather_columns(const T* x, int64_t width, int64_t tokens, int64_t columns, float* out) {
  for (int64_t i = 0; i < tokens; ++i, x += width, out += kElement) {
    if (columns == 2 * kLanes) {
      store_complex(out, {load(x), load(x + kLanes)});
    } else {
      const int64_t first = smaller(columns, kLanes), second = columns - first;
      store_complex(out, {first == kLanes ? load(x) : load_first(x, first),
                          second == 0 ? Floats{} : load_first(x + kLanes, second)});
    }
  }
}

// Spectra (twice their size) of both column vectors at frequency k, from the joint one.
TRIMTAB_INLINE void separate(const Problem& p, const float* joint, int64_t k, float* tile,
                             int64_t row) {
  constexpr int64_t kTile = kLanes * kLanes;
  float* at = tile + row * kLanes;
  if (k == 0) {
    const Complex zero = load_complex(joint);
    const Complex middle = p.shared_row() ? load_complex(joint + p.tokens / 2 * kElement)
                                          : Complex{Floats{}, Floats{}};
    store(at, zero.re + zero.re);
    store(at + kTile, middle.re + middle.re);
    store(at + 2 * kTile, zero.im + zero.im);
    store(at + 3 * kTile, middle.im + middle.im);
    return;
  }
  const Complex a = load_complex(joint + k * kElement);
  const Complex b = load_complex(joint + (p.tokens - k) * kElement);
  store(at, a.re + b.re);
  store(at + kTile, a.im - b.im);
  store(at + 2 * kTile, a.im + b.im);
  store(at + 3 * kTile, b.re - a.re);
}

// Turns tiles [frequency][column] into [column][frequency] inside the block's spectrum.
TRIMTAB_INLINE void scatter_tile(const float* tile, float* spectrum, int64_t columns) {
  if (columns >= kLanes) return transpose_tile(tile, kLanes, spectrum, kElement);
  float turned[kLanes * kLanes];
  transpose_tile(tile, kLanes, turned, kLanes);
  for (int64_t c = 0; c < columns; ++c) store(spectrum + c * kElement, load(turned + c * kLanes));
}

template <typename T>
bool transform_columns(const Problem& p, const T* x, int64_t group, float* spectrum) {
  const int64_t first = group * 2 * kLanes, columns = smaller(2 * kLanes, p.width - first);
  const int64_t work_floats = transform_floats(*p.over_tokens);
  constexpr bool kDirect = __is_same(T, float);
  const bool direct = kDirect && columns == 2 * kLanes;
  float* work = floats_of_scratch(work_floats + (direct ? 0 : p.tokens * kElement), kWorkSlot);
  if (work == nullptr) return false;
  const float* joint;
  if (direct) {
    joint = lane_transform(*p.over_tokens,
                           Columns{reinterpret_cast<const float*>(x) + first, p.width}, work);
  } else {
    float* gathered = work + work_floats;
    gather_columns(x + first, p.width, p.tokens, columns, gathered);
    joint = lane_transform(*p.over_tokens, Elements{gathered, 0}, work);
  }
  float tile[4 * kLanes * kLanes] __attribute__((aligned(64)));
  constexpr int64_t kTile = kLanes * kLanes;
  for (int64_t block = 0; block < p.blocks(); ++block) {
    const int64_t rows = smaller(kLanes, p.frequencies() - block * kLanes);
    if (rows < kLanes) memset(tile, 0, sizeof(tile));
    for (int64_t row = 0; row < rows; ++row) separate(p, joint, block * kLanes + row, tile, row);
    float* out = spectrum + (block * p.width + first) * kElement;
    scatter_tile(tile, out, columns);
    scatter_tile(tile + kTile, out + kLanes, columns);
    if (columns > kLanes) {
      float* next = out + kLanes * kElement;
      scatter_tile(tile + 2 * kTile, next, columns - kLanes);
      scatter_tile(tile + 3 * kTile, next + kLanes, columns - kLanes);
    }
  }
  return true;
}

// ---- second step: over features ------------------------------------------------------------

// out[m] = row[-m mod width]
TRIMTAB_INLINE void mirror_row(const float* row, float* out, int64_t width) {
  out[0] = row[0];
  int64_t m = 1;
  for (; m + kLanes <= width; m += kLanes)
    store(out + m, reversed(load(row + width - m - kLanes + 1)));
  for (; m < width; ++m) out[m] = row[width - m];
}

// Rows k = 0 and n / 2 from the complex row that they shared: the even parts of re and im.
TRIMTAB_INLINE void even_part(float* row, float* scratch_row, int64_t width) {
  mirror_row(row, scratch_row, width);
  for_lanes(
      width, [&](int64_t i) { store(row + i, (load(row + i) + load(scratch_row + i)) * 0.5f); },
      [&](int64_t i, int64_t rest) {
        const Floats sum = load_first(row + i, rest) + load_first(scratch_row + i, rest);
        store_first(row + i, sum * 0.5f, rest);
      });
}

// Calls emit(k, row, spare row) for each result row that this block of frequencies determines.
template <typename Emit>
bool transform_features(const Problem& p, const float* spectrum, int64_t block, const Emit& emit) {
  const int64_t stride = p.row_stride(), width = p.width;
  // The tiles of the last columns may read past the end of the elements.
  float* work = floats_of_scratch(transform_floats(*p.over_width) + kLanes * kElement, kWorkSlot);
  float* rows = floats_of_scratch((kLanes + 3) * stride, kRowSlot);
  if (work == nullptr || rows == nullptr) return false;
  const int64_t block_floats = width * kElement;
  const float* found =
      lane_transform(*p.over_width, Elements{spectrum + block * block_floats, block_floats}, work);
  for (int64_t m = 0; m < width; m += kLanes)
    transpose_tile(found + m * kElement, kElement, rows + m, stride);
  float* middle = rows + kLanes * stride;
  float* mirrored = middle + stride;
  float* spare = mirrored + stride;
  const int64_t count = smaller(kLanes, p.frequencies() - block * kLanes);
  for (int64_t lane = 0; lane < count; ++lane) {
    const int64_t k = block * kLanes + lane;
    float* row = rows + lane * stride;
    if (k > 0) {
      mirror_row(row, mirrored, width);
      emit(p.tokens - k, mirrored, spare);
    } else if (p.shared_row()) {
      for (int64_t m = 0; m < width; ++m) middle[m] = found[m * kElement + kLanes];
      even_part(middle, spare, width);
      even_part(row, spare, width);
      emit(p.tokens / 2, middle, spare);
    }
    emit(k, row, spare);
  }
  return true;
}

// Runs body(index) -> bool for all, neighbours on one thread because each prefetches for the next.
// Indices are independent, so the cut may follow the number of threads.
template <typename Body>
bool in_runs(int64_t count, const Body& body) {
  const int64_t run = larger(1, count / (4 * trimtab::thread_count()));
  bool starved = false;
  parallel(ceil_div(count, run), [&](int64_t chunk) {
    for (int64_t i = chunk * run; i < smaller(count, (chunk + 1) * run); ++i)
      if (!body(i)) __atomic_store_n(&starved, true, __ATOMIC_RELAXED);
  });
  return !starved;
}

// ---- one example ---------------------------------------------------------------------------

template <typename T, typename Emit>
bool transform_example(const Problem& p, const T* x, const Emit& emit) {
  float* spectrum = floats_of_scratch(p.spectrum_floats(), kSpectrumSlot);
  if (spectrum == nullptr) return false;
  return in_runs(p.column_groups(),
                 [&](int64_t group) { return transform_columns(p, x, group, spectrum); }) &&
         in_runs(p.blocks(),
                 [&](int64_t block) { return transform_features(p, spectrum, block, emit); });
}

// Runs body(example) -> bool for all; many examples share the pool, few are each shared out.
template <typename Body>
bool for_examples(int64_t batch, const Body& body) {
  if (batch < 2 * trimtab::thread_count()) {
    for (int64_t example = 0; example < batch; ++example)
      if (!body(example)) return false;
    return true;
  }
  return in_runs(batch, body);
}

template <typename T>
TRIMTAB_INLINE void write_scaled(const float* row, float factor, T* out, int64_t width) {
  for_lanes(
      width, [&](int64_t i) { store(out + i, load(row + i) * factor); },
      [&](int64_t i, int64_t rest) {
        store_first(out + i, load_first(row + i, rest) * factor, rest);
      });
}

const char* problem_of(const Call& call, Problem* out, PlanHold& rows, PlanHold& columns) {
  if (rows.plan == nullptr || columns.plan == nullptr) return "out of memory";
  const Buffer& x = call.arguments[0];
  // 0.5 undoes the doubling in `separate`.
  *out = {size_from_end(x, 2), size_from_end(x, 1), rows.plan, columns.plan,
          0.5f * static_cast<float>(real_attribute(call, "factor", 1.0))};
  return nullptr;
}

const char* check(const Call& call) {
  for (int i = 0; i < call.argument_count; ++i)
    if (!is_float(call.arguments[i])) return "fourier_mix takes float32, bfloat16 and float16 only";
  if (call.arguments[0].rank < 2) return "fourier_mix needs an array (..., tokens, width)";
  return nullptr;
}

// x [batch..., tokens, width] -> float32 of that shape.
const char* fourier_mix(const Call& call) {
  if (const char* problem = check(call)) return problem;
  const Buffer& x = call.arguments[0];
  if (elements(x) == 0) return nullptr;
  PlanHold over_tokens(size_from_end(x, 2)), over_width(size_from_end(x, 1));
  Problem p;
  if (const char* problem = problem_of(call, &p, over_tokens, over_width)) return problem;
  if (call.results[0].type != DataType::float32) return "fourier_mix returns float32";
  float* results = static_cast<float*>(call.results[0].data);
  const int64_t size = p.tokens * p.width;
  bool done = false;
  with_float_type(x, [&](auto* data) {
    done = for_examples(elements(x) / size, [&](int64_t example) {
      float* out = results + example * size;
      return transform_example(p, data + example * size, [&](int64_t k, const float* row, float*) {
        write_scaled(row, p.factor, out + k * p.width, p.width);
      });
    });
  });
  return done ? nullptr : "out of memory";
}

// x [batch..., tokens, width], scale and bias [batch..., width] -> norm(mix(x) + x), type of x.
const char* fourier_mix_residual_norm(const Call& call) {
  if (const char* problem = check(call)) return problem;
  const Buffer &x = call.arguments[0], &scale_buffer = call.arguments[1];
  if (elements(x) == 0) return nullptr;
  PlanHold over_tokens(size_from_end(x, 2)), over_width(size_from_end(x, 1));
  Problem p;
  if (const char* problem = problem_of(call, &p, over_tokens, over_width)) return problem;
  if (size_from_end(scale_buffer, 1) != p.width || size_from_end(call.arguments[2], 1) != p.width)
    return "fourier_mix_residual_norm needs scale and bias as long as the last axis of x";
  const int64_t size = p.tokens * p.width, batch = elements(x) / size;
  const int64_t parameters = elements(scale_buffer);
  if (parameters != batch * p.width && parameters != p.width)
    return "fourier_mix_residual_norm needs one scale, or one for each example";
  const int64_t shared = parameters == p.width ? 0 : p.width;
  float* scale = floats_of_scratch(2 * parameters, kParameterSlot);
  if (scale == nullptr) return "out of memory";
  float* bias = scale + parameters;
  with_float_type(scale_buffer, [&](auto* data) { widen(data, scale, parameters); });
  with_float_type(call.arguments[2], [&](auto* data) { widen(data, bias, parameters); });
  const float epsilon = static_cast<float>(real_attribute(call, "epsilon", 1e-12));
  bool done = false;
  with_float_type(x, [&](auto* data) {
    using Pointer = __typeof__(data);
    done = for_examples(batch, [&](int64_t example) {
      const auto* from = data + example * size;
      auto* out = static_cast<Pointer>(call.results[0].data) + example * size;
      return transform_example(p, from, [&](int64_t k, const float* row, float* total) {
        const auto* residual = from + k * p.width;
        for_lanes(
            p.width,
            [&](int64_t i) { store(total + i, load(row + i) * p.factor + load(residual + i)); },
            [&](int64_t i, int64_t rest) {
              const Floats mixed = load_first(row + i, rest) * p.factor;
              store_first(total + i, mixed + load_first(residual + i, rest), rest);
            });
        normalise_row(total, scale + example * shared, bias + example * shared, out + k * p.width,
                      p.width, epsilon);
      });
    });
  });
  return done ? nullptr : "out of memory";
}

}  // namespace

TRIMTAB_EXPORT({"fourier_mix", fourier_mix},
               {"fourier_mix_residual_norm", fourier_mix_residual_norm})
