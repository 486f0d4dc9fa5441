// y = x W^T for dense float32 and bfloat16 matrices, W stored [outputs, inner] as models keep it.
//
// W is packed into panels of two vectors of outputs, inner index first; a tile of kTileRows rows by
// one panel is then a sum of outer products kept in registers. bfloat16 uses the dot product of
// pairs where the processor has it, and is widened to float32 elsewhere. Every element is summed in
// the same order whatever the shapes around it and the number of threads.
#include "transpose.h"

namespace {

#if TRIMTAB_ANY_AVX512
constexpr int kTileRows = 12;
#elif TRIMTAB_AVX2
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int64_t kPanel = 2 * kLanes;
constexpr int64_t kPanelsInChunk = 4;
constexpr int64_t kBlockBytes = 512 << 10;  // Rows of x that stay in the second-level cache.

#if TRIMTAB_AVX512 || TRIMTAB_AMX
#define TRIMTAB_PAIR_DOT 1
#else
#define TRIMTAB_PAIR_DOT 0
#endif

struct Product {
  int64_t rows, inner, outputs, panels;
};

// packed[k][j] = from[j][k] for one panel of words; missing outputs are zero.
TRIMTAB_INLINE void pack_words(const float* from, int64_t outputs, int64_t inner, float* packed) {
  if (outputs < kPanel) memset(packed, 0, sizeof(float) * inner * kPanel);
  for (int64_t j = 0; j < outputs; j += kLanes)
    for (int64_t k = 0; k < inner; k += kLanes) {
      const int64_t rows = smaller(kLanes, outputs - j), columns = smaller(kLanes, inner - k);
      const float* source = from + j * inner + k;
      float* target = packed + k * kPanel + j;
      if (rows == kLanes && columns == kLanes) {
        transpose_tile(source, inner, target, kPanel);
        continue;
      }
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t r = 0; r < rows; ++r)
          memcpy(target + c * kPanel + r, source + r * inner + c, 4);
    }
}

// Panel [inner][kPanel] in float32.
void pack_panel(const float* weight, const Product& p, int64_t panel, float* packed) {
  const int64_t first = panel * kPanel;
  pack_words(weight + first * p.inner, smaller(kPanel, p.outputs - first), p.inner, packed);
}

void pack_panel(const BFloat16* weight, const Product& p, int64_t panel, float* packed) {
  const int64_t first = panel * kPanel, filled = smaller(kPanel, p.outputs - first);
  if (filled < kPanel) memset(packed, 0, sizeof(float) * p.inner * kPanel);
  const BFloat16* from = weight + first * p.inner;
  for (int64_t j = 0; j < filled; ++j)
    for (int64_t k = 0; k < p.inner; ++k) packed[k * kPanel + j] = to_float(from[j * p.inner + k]);
}

template <typename T>
TRIMTAB_INLINE void store_tile(const Floats (&sums)[kTileRows][2], const Product& p, int64_t row,
                               int64_t column, T* out) {
  const int64_t rows = smaller(kTileRows, p.rows - row);
  const int64_t columns = smaller(kPanel, p.outputs - column);
  for (int64_t r = 0; r < rows; ++r) {
    T* to = out + (row + r) * p.outputs + column;
    if (columns == kPanel) {
      store(to, sums[r][0]);
      store(to + kLanes, sums[r][1]);
      continue;
    }
    float values[kPanel];
    store(values, sums[r][0]);
    store(values + kLanes, sums[r][1]);
    for (int64_t j = 0; j < columns; ++j) from_float(values[j], to + j);
  }
}

template <typename T>
void tile(const float* x, const float* panel, const Product& p, int64_t row, int64_t column,
          T* out) {
  const float* from[kTileRows];
  for (int64_t r = 0; r < kTileRows; ++r) from[r] = x + smaller(row + r, p.rows - 1) * p.inner;
  Floats sums[kTileRows][2] = {};
  for (int64_t k = 0; k < p.inner; ++k) {
    const Floats low = load(panel + k * kPanel), high = load(panel + k * kPanel + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      const Floats value = all(from[r][k]);
      sums[r][0] += value * low;
      sums[r][1] += value * high;
    }
  }
  store_tile(sums, p, row, column, out);
}

// Runs body(first row, end row, panel) over everything; x blocks stay in cache over the panels.
template <typename Body>
void over_tiles(const Product& p, int64_t bytes, const Body& body) {
  int64_t block = kBlockBytes / larger(1, p.inner * bytes) / kTileRows * kTileRows;
  block = larger(4 * kTileRows, smaller(block, 20 * kTileRows));
  const int64_t groups = ceil_div(p.panels, kPanelsInChunk);
  parallel(ceil_div(p.rows, block) * groups, [&](int64_t chunk) {
    const int64_t first = chunk / groups * block, end = smaller(p.rows, first + block);
    const int64_t panel = chunk % groups * kPanelsInChunk;
    for (int64_t i = panel; i < smaller(p.panels, panel + kPanelsInChunk); ++i)
      for (int64_t row = first; row < end; row += kTileRows) body(row, i);
  });
}

template <typename T>
const char* multiply_in_float32(const float* x, const T* weight, const Product& p, T* out) {
  float* packed =
      static_cast<float*>(trimtab::scratch(sizeof(float) * p.panels * p.inner * kPanel, 0));
  if (packed == nullptr) return "out of memory";
  parallel(p.panels, [&](int64_t panel) {
    pack_panel(weight, p, panel, packed + panel * p.inner * kPanel);
  });
  over_tiles(p, sizeof(float), [&](int64_t row, int64_t panel) {
    tile(x, packed + panel * p.inner * kPanel, p, row, panel * kPanel, out);
  });
  return nullptr;
}

#if TRIMTAB_PAIR_DOT

// Panel [inner / 2][kPanel] of pairs of consecutive inner values, moved as 32-bit words.
void pack_pairs(const BFloat16* weight, const Product& p, int64_t panel, uint32_t* packed) {
  const int64_t first = panel * kPanel;
  pack_words(reinterpret_cast<const float*>(weight + first * p.inner),
             smaller(kPanel, p.outputs - first), p.inner / 2, reinterpret_cast<float*>(packed));
}

void pair_tile(const BFloat16* x, const uint32_t* panel, const Product& p, int64_t row,
               int64_t column, BFloat16* out) {
  const BFloat16* from[kTileRows];
  for (int64_t r = 0; r < kTileRows; ++r) from[r] = x + smaller(row + r, p.rows - 1) * p.inner;
  __m512 sums[kTileRows][2];
  for (auto& sum : sums) sum[0] = sum[1] = _mm512_setzero_ps();
  for (int64_t k = 0; k < p.inner / 2; ++k) {
    const __m512i low = _mm512_loadu_si512(panel + k * kPanel);
    const __m512i high = _mm512_loadu_si512(panel + k * kPanel + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      int32_t pair;
      memcpy(&pair, from[r] + 2 * k, 4);
      const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], value, (__m512bh)low);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], value, (__m512bh)high);
    }
  }
  Floats finished[kTileRows][2];
  memcpy(&finished, &sums, sizeof(sums));
  store_tile(finished, p, row, column, out);
}

const char* multiply_pairs(const BFloat16* x, const BFloat16* weight, const Product& p,
                           BFloat16* out) {
  const int64_t size = p.inner / 2 * kPanel;
  uint32_t* packed =
      static_cast<uint32_t*>(trimtab::scratch(sizeof(uint32_t) * p.panels * size, 0));
  if (packed == nullptr) return "out of memory";
  parallel(p.panels,
           [&](int64_t panel) { pack_pairs(weight, p, panel, packed + panel * size); });
  over_tiles(p, 2, [&](int64_t row, int64_t panel) {
    pair_tile(x, packed + panel * size, p, row, panel * kPanel, out);
  });
  return nullptr;
}

#endif

const char* multiply_bfloat16(const BFloat16* x, const BFloat16* weight, const Product& p,
                              BFloat16* out) {
#if TRIMTAB_PAIR_DOT
  if (p.inner % 2 == 0) return multiply_pairs(x, weight, p, out);
#endif
  float* wide = static_cast<float*>(trimtab::scratch(sizeof(float) * p.rows * p.inner, 1));
  if (wide == nullptr) return "out of memory";
  parallel(p.rows, [&](int64_t row) {
    for (int64_t k = row * p.inner; k < (row + 1) * p.inner; ++k) wide[k] = to_float(x[k]);
  });
  return multiply_in_float32(wide, weight, p, out);
}

// x [rows, inner] and weight [outputs, inner] of one type give [rows, outputs] of that type.
const char* dense_linear(const Call& call) {
  const Buffer &x = call.arguments[0], &weight = call.arguments[1];
  if (x.rank != 2 || weight.rank != 2 || x.dims[1] != weight.dims[1])
    return "dense_linear needs x [rows, inner] and weight [outputs, inner]";
  if (x.type != weight.type || (x.type != DataType::float32 && x.type != DataType::bfloat16))
    return "dense_linear takes float32 or bfloat16, the same for both";
  const Product p{x.dims[0], x.dims[1], weight.dims[0], ceil_div(weight.dims[0], kPanel)};
  if (p.rows == 0 || p.outputs == 0) return nullptr;
  if (x.type == DataType::float32)
    return multiply_in_float32(static_cast<const float*>(x.data),
                               static_cast<const float*>(weight.data), p,
                               static_cast<float*>(call.results[0].data));
  return multiply_bfloat16(static_cast<const BFloat16*>(x.data),
                           static_cast<const BFloat16*>(weight.data), p,
                           static_cast<BFloat16*>(call.results[0].data));
}

}  // namespace

TRIMTAB_EXPORT({"dense_linear", dense_linear})
