// Matrix products of quantised activations with packed weight strips.
//
// Activations are rounded to int8 in blocks of 32 (scale = absmax / 127), or once per row for the
// ternary models that were trained so. Every (row, output) sum is formed in the same order however
// many rows share a tile: a row's result does not depend on its neighbours or on threads.
#pragma once

#include "block_tiles.h"

namespace {

// What one 32-value block of activations needs besides its codes.
struct BlockSums {
    float scale;           // of the activations
    float weighted;        // scale * sum of the codes, for weights with a minimum
    int32_t negative;      // - sum of the codes, for weights stored with an offset
    int32_t negative_low;  // the same over the first 16 columns
};

// Rows of activations in every form that some weight kind reads; unused pointers are null.
struct Activations {
    int64_t columns;
    const float* floats;  // [rows][columns]
    int8_t* codes;        // [rows][columns]
    BlockSums* sums;      // [rows][columns / 32]
    uint16_t* bfloats;    // [rows][columns rounded up to 2]
};

enum ActivationForm { kFloatForm = 1, kBfloatForm = 2, kBlockForm = 4, kRowForm = 8 };

inline int activation_form(int kind) {
    if (kind == kF32 || kind == kF16) return kFloatForm;
    if (kind == kBF16) return kBfloatForm;
    return kind == kTernary ? kRowForm : kBlockForm;
}

// Round two vectors (one block) to int8 with the given factor.
TRIMTAB_INLINE void quantize_block(F16 a, F16 b, float factor, float scale, int8_t* codes,
                                   BlockSums* sums) {
    typedef int8_t C16 __attribute__((vector_size(16)));
    const F16 magic = splat(12582912.0f);
    const I16 offset = splat_int(0x4b400000);
    I16 low = (I16)fma16(a, splat(factor), magic) - offset;
    I16 high = (I16)fma16(b, splat(factor), magic) - offset;
    store(codes, __builtin_convertvector(low, C16));
    store(codes + 16, __builtin_convertvector(high, C16));
#if defined(__AVX512F__)
    int32_t sum_low = _mm512_reduce_add_epi32((__m512i)low);
    int32_t sum = sum_low + _mm512_reduce_add_epi32((__m512i)high);
#else
    int32_t sum_low = 0, sum = 0;
    for (int i = 0; i < 16; i++) sum_low += low[i], sum += high[i];
    sum += sum_low;
#endif
    sums->scale = scale;
    sums->weighted = scale * (float)sum;
    sums->negative = -sum;
    sums->negative_low = -sum_low;
}

TRIMTAB_INLINE float absmax_block(F16 a, F16 b) {
    F16 m = max16(abs16(a), abs16(b));
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)m);
#else
    return max_lanes(m);
#endif
}

TRIMTAB_INLINE void quantize_block_absmax(F16 a, F16 b, int8_t* codes, BlockSums* sums) {
    float largest = absmax_block(a, b);
    quantize_block(a, b, largest > 0 ? 127.0f / largest : 0.0f, largest * (1.0f / 127.0f), codes,
                   sums);
}

// Fill the forms in `forms` of row `row` from `x`.
inline void prepare_row(const float* x, int64_t row, const Activations& to, int forms) {
    int64_t columns = to.columns;
    if (forms & kBlockForm) {
        int8_t* codes = to.codes + row * columns;
        BlockSums* sums = to.sums + row * (columns / 32);
        for (int64_t b = 0; b < columns / 32; b++)
            quantize_block_absmax(load<F16>(x + 32 * b), load<F16>(x + 32 * b + 16), codes + 32 * b,
                                  sums + b);
    } else if (forms & kRowForm) {
        int8_t* codes = to.codes + row * columns;
        BlockSums* sums = to.sums + row * (columns / 32);
        F16 m = splat(0.0f);
        for (int64_t k = 0; k < columns; k += 16) m = max16(m, abs16(load<F16>(x + k)));
        float largest = max_lanes(m);
        float factor = 127.0f / (largest > 1e-5f ? largest : 1e-5f);
        for (int64_t b = 0; b < columns / 32; b++)
            quantize_block(load<F16>(x + 32 * b), load<F16>(x + 32 * b + 16), factor, 1.0f / factor,
                           codes + 32 * b, sums + b);
    }
    if (forms & kBfloatForm) {
        uint16_t* to_row = to.bfloats + row * round_up(columns, 2);
        for (int64_t k = 0; k < columns; k++) to_row[k] = float_to_bfloat(x[k]);
        if (columns & 1) to_row[columns] = 0;
    }
}

// ---------------------------------------------------------------------------- tiles
// Few rows: the weights come from memory once, so their lines are asked for this far ahead (the
// hardware prefetcher stops at page borders; measured best of 1 to 8 KiB on Zen 4).
constexpr int kAhead = 8192;
// out[t] = 16 outputs of one strip for activation row `row + t`.
typedef void (*TileFunction)(const uint8_t* strip, const Activations& x, int64_t row, F16* out);

template <int kind, int rows>
void block_tile(const uint8_t* strip, const Activations& x, int64_t row, F16* out) {
    typedef Form<kind> F;
    const int64_t columns = x.columns, blocks = columns / 32;
    const int8_t* codes = x.codes + row * columns;
    const BlockSums* sums = x.sums + row * blocks;
    constexpr bool split = F::scale == kSuperScale16;
    F16 acc[rows];
    for (int t = 0; t < rows; t++) acc[t] = splat(0.0f);
    for (int64_t b = 0; b < blocks; b++) {
        if constexpr (rows <= 8)
            for (int line = 0; line < tile_bytes<kind>(); line += 64)
                __builtin_prefetch(strip + b * tile_bytes<kind>() + line + kAhead, 0, 3);
        B64 w[8];
        unpack_tile<kind>(strip, b, w);
        TileScales scales = tile_scales<kind>(strip, blocks, b);
#pragma GCC unroll 16
        for (int t = 0; t < rows; t++) {
            const int8_t* c = codes + t * columns + 32 * b;
            const BlockSums* s = sums + t * blocks + b;
            I16 dot = splat_int(0), second = splat_int(0);
            if constexpr (F::zero_shift >= 0 && (F::low != 512 || biased_dot)) {
                if constexpr (split) {
                    dot = splat_int(s->negative_low) << F::zero_shift;
                    second = splat_int(s->negative - s->negative_low) << F::zero_shift;
                } else {
                    dot = splat_int(s->negative) << F::zero_shift;
                }
            }
#pragma GCC unroll 8
            for (int step = 0; step < 8; step++) {
                int32_t four = load<int32_t>(c + 4 * step);
                if constexpr (F::low == 512) {
                    dot = dot4_signed(dot, w[step], four);
                } else if (split && step >= 4) {
                    second = dot4(second, w[step], four);
                } else {
                    dot = dot4(dot, w[step], four);
                }
            }
            F16 scale = splat(s->scale);
            acc[t] = fma16(to_float(dot), scales.scale * scale, acc[t]);
            if constexpr (split) acc[t] = fma16(to_float(second), scales.second * scale, acc[t]);
            if constexpr (F::zero_shift < 0)
                acc[t] = fma16(scales.minimum, splat(s->weighted), acc[t]);
        }
    }
    for (int t = 0; t < rows; t++) out[t] = acc[t];
}

// Two sums a row, over even and odd columns (or pairs), hide the latency of the multiply-add.
template <int kind, int rows>
void dense_tile(const uint8_t* strip, const Activations& x, int64_t row, F16* out) {
    const int64_t columns = x.columns;
    F16 acc[2][rows];
    for (int t = 0; t < rows; t++) acc[0][t] = acc[1][t] = splat(0.0f);
    if constexpr (kind == kBF16) {
        const int64_t pairs = (columns + 1) / 2;
        const uint16_t* from = x.bfloats + row * 2 * pairs;
        auto step = [&](int64_t p, F16* sums) TRIMTAB_LAMBDA {
            U16 w = load<U16>(strip + p * 64);
#pragma GCC unroll 16
            for (int t = 0; t < rows; t++)
                sums[t] = dot2_bfloat(sums[t], w, load<uint32_t>(from + (t * pairs + p) * 2));
        };
        int64_t p = 0;
        for (; p + 2 <= pairs; p += 2) {
            if constexpr (rows <= 8) {
                __builtin_prefetch(strip + p * 64 + kAhead, 0, 3);
                __builtin_prefetch(strip + p * 64 + kAhead + 64, 0, 3);
            }
            step(p, acc[0]);
            step(p + 1, acc[1]);
        }
        if (p < pairs) step(p, acc[0]);
    } else {
        constexpr int bytes = kind == kF32 ? 64 : 32;
        const float* from = x.floats + row * columns;
        auto step = [&](int64_t k, F16* sums) TRIMTAB_LAMBDA {
            F16 w;
            if constexpr (kind == kF32) {
                w = load<F16>(strip + k * bytes);
            } else {
                w = halves_to_float(strip + k * bytes);
            }
#pragma GCC unroll 16
            for (int t = 0; t < rows; t++)
                sums[t] = fma16(w, splat(from[t * columns + k]), sums[t]);
        };
        int64_t k = 0;
        for (; k + 2 <= columns; k += 2) {
            if constexpr (rows <= 8)
                for (int line = 0; line < 2 * bytes; line += 64)
                    __builtin_prefetch(strip + k * bytes + line + kAhead, 0, 3);
            step(k, acc[0]);
            step(k + 1, acc[1]);
        }
        if (k < columns) step(k, acc[0]);
    }
    for (int t = 0; t < rows; t++) out[t] = acc[0][t] + acc[1][t];
}

// Most rows a tile serves: limited by the registers that hold its sums.
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#elif defined(__AVX2__)
constexpr int kTileRows = 4;
#else
constexpr int kTileRows = 2;
#endif

template <int kind, int rows>
constexpr TileFunction tile_of() {
    if constexpr (kind <= kF16) {
        return dense_tile<kind, rows>;
    } else {
        return block_tile<kind, rows>;
    }
}

template <int kind, int rows>
inline TileFunction tile_for_rows(int count) {
    if (count == rows) return tile_of<kind, rows>();
    if constexpr (rows > 1) return tile_for_rows<kind, rows - 1>(count);
    return nullptr;
}

inline TileFunction tile_function(int kind, int rows) {
    switch (kind) {
        case kF32: return tile_for_rows<kF32, kTileRows>(rows);
        case kBF16: return tile_for_rows<kBF16, kTileRows>(rows);
        case kF16: return tile_for_rows<kF16, kTileRows>(rows);
        case kQ4_0: return tile_for_rows<kQ4_0, kTileRows>(rows);
        case kQ4_1: return tile_for_rows<kQ4_1, kTileRows>(rows);
        case kQ5_0: return tile_for_rows<kQ5_0, kTileRows>(rows);
        case kQ5_1: return tile_for_rows<kQ5_1, kTileRows>(rows);
        case kQ8_0: return tile_for_rows<kQ8_0, kTileRows>(rows);
        case kQ4_K: return tile_for_rows<kQ4_K, kTileRows>(rows);
        case kQ5_K: return tile_for_rows<kQ5_K, kTileRows>(rows);
        case kQ6_K: return tile_for_rows<kQ6_K, kTileRows>(rows);
        case kTernary: return tile_for_rows<kTernary, kTileRows>(rows);
    }
    return nullptr;
}

}  // namespace
