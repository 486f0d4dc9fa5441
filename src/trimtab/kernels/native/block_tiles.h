// Weights in row-interleaved tiles: 16 output rows by 32 input columns, ordered for 4-byte integer
// dot products, so that a lane of a vector is an output row and no sum across lanes is needed.
//
// A strip holds 16 output rows over all columns: one tile after the other for the column blocks
// b = 0 .. columns / 32 - 1 (one ascending stream, which is what prefetchers follow), then `super`.
// Parts of a tile, in order:
//   low     the low bits: vector j, byte 4 r + i belongs to row r and to columns 4 s + i of the
//           block; s is j (low nibble) and j + 4 (high nibble), or j itself for 8-bit weights, or
//           4 j + t for the 2-bit field t of ternary weights
//   high    the fifth bit (64-bit masks, one a step s) or the upper 2 bits (fields as for ternary)
//   scale   halves (scale, then minimum), or the 6-bit / 8-bit integer scales
// and after all tiles
//   super   per 8 blocks: halves that multiply the integer scales; ternary: 16 floats a strip
// Formats and their arithmetic are those of the GGUF file format.
#pragma once

#include "vector16.h"

namespace {

enum Kind : int32_t {
    kF32 = 0,
    kBF16 = 1,
    kF16 = 2,
    kQ4_0 = 3,
    kQ4_1 = 4,
    kQ5_0 = 5,
    kQ5_1 = 6,
    kQ8_0 = 7,
    kQ4_K = 8,
    kQ5_K = 9,
    kQ6_K = 10,
    kTernary = 11,
    kKinds = 12,
};

enum ScaleForm { kHalfScale, kHalfScaleAndMinimum, kSuperScaleAndMinimum, kSuperScale16, kStripScale };

// zero_shift: the stored code is value + 2^zero_shift; negative when the code is the value.
template <int kind>
struct Form;
template <>
struct Form<kQ4_0> {
    static constexpr int low = 256, high = 0, zero_shift = 3;
    static constexpr ScaleForm scale = kHalfScale;
};
template <>
struct Form<kQ4_1> {
    static constexpr int low = 256, high = 0, zero_shift = -1;
    static constexpr ScaleForm scale = kHalfScaleAndMinimum;
};
template <>
struct Form<kQ5_0> {
    static constexpr int low = 256, high = 64, zero_shift = 4;
    static constexpr ScaleForm scale = kHalfScale;
};
template <>
struct Form<kQ5_1> {
    static constexpr int low = 256, high = 64, zero_shift = -1;
    static constexpr ScaleForm scale = kHalfScaleAndMinimum;
};
template <>
struct Form<kQ8_0> {
    static constexpr int low = 512, high = 0, zero_shift = 7;
    static constexpr ScaleForm scale = kHalfScale;
};
template <>
struct Form<kQ4_K> {
    static constexpr int low = 256, high = 0, zero_shift = -1;
    static constexpr ScaleForm scale = kSuperScaleAndMinimum;
};
template <>
struct Form<kQ5_K> {
    static constexpr int low = 256, high = 64, zero_shift = -1;
    static constexpr ScaleForm scale = kSuperScaleAndMinimum;
};
template <>
struct Form<kQ6_K> {
    static constexpr int low = 256, high = 128, zero_shift = 5;
    static constexpr ScaleForm scale = kSuperScale16;
};
template <>
struct Form<kTernary> {
    static constexpr int low = 128, high = 0, zero_shift = 0;
    static constexpr ScaleForm scale = kStripScale;
};

constexpr int scale_bytes(ScaleForm form) {
    return form == kHalfScale ? 32 : form == kHalfScaleAndMinimum ? 64 : form == kStripScale ? 0 : 32;
}
constexpr int super_bytes(ScaleForm form) {
    return form == kSuperScaleAndMinimum ? 64 : form == kSuperScale16 ? 32 : 0;
}

template <int kind>
constexpr int64_t tile_bytes() {
    return Form<kind>::low + Form<kind>::high + scale_bytes(Form<kind>::scale);
}
template <int kind>
constexpr int64_t block_strip_bytes(int64_t blocks) {
    typedef Form<kind> F;
    int64_t bytes = blocks * tile_bytes<kind>() +
                    (blocks + 7) / 8 * super_bytes(F::scale) + (F::scale == kStripScale ? 64 : 0);
    return (bytes + 63) / 64 * 64;
}

// Bytes of one strip of `columns` inputs.
inline int64_t strip_bytes(int kind, int64_t columns) {
    int64_t blocks = columns / 32;
    switch (kind) {
        case kF32: return columns * 64;
        case kF16: return round_up(columns * 32, 64);
        case kBF16: return (columns + 1) / 2 * 64;
        case kQ4_0: return block_strip_bytes<kQ4_0>(blocks);
        case kQ4_1: return block_strip_bytes<kQ4_1>(blocks);
        case kQ5_0: return block_strip_bytes<kQ5_0>(blocks);
        case kQ5_1: return block_strip_bytes<kQ5_1>(blocks);
        case kQ8_0: return block_strip_bytes<kQ8_0>(blocks);
        case kQ4_K: return block_strip_bytes<kQ4_K>(blocks);
        case kQ5_K: return block_strip_bytes<kQ5_K>(blocks);
        case kQ6_K: return block_strip_bytes<kQ6_K>(blocks);
        case kTernary: return block_strip_bytes<kTernary>(blocks);
    }
    return -1;
}

// Bit i of 64 as the value 16 in byte i.
TRIMTAB_INLINE B64 spread_bits(const uint8_t* bits) {
    typedef uint64_t W8 __attribute__((vector_size(64)));
    W8 words;
    for (int i = 0; i < 8; i++) {
        // Byte j of the product keeps bit j; adding 127 carries a set one into the top bit.
        uint64_t own = bits[i] * 0x0101010101010101ull & 0x8040201008040201ull;
        words[i] = (own + 0x7f7f7f7f7f7f7f7full) >> 3 & 0x1010101010101010ull;
    }
    return (B64)words;
}

// The eight 64-byte code vectors of one tile: step s covers columns 4 s .. 4 s + 3.
template <int kind>
TRIMTAB_INLINE void unpack_tile(const uint8_t* strip, int64_t block, B64 codes[8]) {
    typedef Form<kind> F;
    const uint8_t* low = strip + block * tile_bytes<kind>();
    if constexpr (F::low == 512) {
        for (int s = 0; s < 8; s++) codes[s] = load<B64>(low + 64 * s);
    } else if constexpr (F::low == 128) {
        for (int v = 0; v < 2; v++) {
            U16 fields = load<U16>(low + 64 * v);
            for (int t = 0; t < 4; t++)
                codes[4 * v + t] = (B64)((fields >> (uint32_t)(2 * t)) & (uint32_t)0x03030303);
        }
    } else {
        for (int j = 0; j < 4; j++) {
            U16 nibbles = load<U16>(low + 64 * j);
            codes[j] = (B64)(nibbles & (uint32_t)0x0f0f0f0f);
            codes[j + 4] = (B64)((nibbles >> (uint32_t)4) & (uint32_t)0x0f0f0f0f);
        }
    }
    const uint8_t* high = low + F::low;
    if constexpr (F::high == 64) {
        for (int s = 0; s < 8; s++) {
#if defined(__AVX512BW__)
            uint64_t mask = load<uint64_t>(high + 8 * s);
            codes[s] = (B64)_mm512_mask_add_epi8((__m512i)codes[s], mask, (__m512i)codes[s],
                                                 _mm512_set1_epi8(16));
#else
            codes[s] |= spread_bits(high + 8 * s);
#endif
        }
    } else if constexpr (F::high == 128) {
        for (int v = 0; v < 2; v++) {
            U16 fields = load<U16>(high + 64 * v);
            for (int t = 0; t < 4; t++) {
                U16 upper = t < 2 ? fields << (uint32_t)(4 - 2 * t) : fields >> (uint32_t)(2 * t - 4);
                codes[4 * v + t] |= (B64)(upper & (uint32_t)0x30303030);
            }
        }
    }
}

struct TileScales {
    F16 scale, second, minimum;  // `second` belongs to columns 16..31 where scales cover 16 columns
};

template <int kind>
TRIMTAB_INLINE TileScales tile_scales(const uint8_t* strip, int64_t blocks, int64_t block) {
    typedef Form<kind> F;
    const uint8_t* scales = strip + block * tile_bytes<kind>() + F::low + F::high;
    const uint8_t* supers = strip + blocks * tile_bytes<kind>();
    TileScales s;
    if constexpr (F::scale == kStripScale) {
        s.scale = load<F16>(supers);
    } else if constexpr (F::scale == kHalfScale) {
        s.scale = halves_to_float(scales);
    } else if constexpr (F::scale == kHalfScaleAndMinimum) {
        s.scale = halves_to_float(scales);
        s.minimum = halves_to_float(scales + 32);
    } else if constexpr (F::scale == kSuperScaleAndMinimum) {
        typedef uint8_t B16 __attribute__((vector_size(16)));
        const uint8_t* super = supers + block / 8 * 64;
        s.scale = halves_to_float(super) *
                  to_float(__builtin_convertvector(load<B16>(scales), I16));
        s.minimum = -halves_to_float(super + 32) *
                    to_float(__builtin_convertvector(load<B16>(scales + 16), I16));
    } else {
        typedef int8_t S16 __attribute__((vector_size(16)));
        F16 super = halves_to_float(supers + block / 8 * 32);
        s.scale = super * to_float(__builtin_convertvector(load<S16>(scales), I16));
        s.second = super * to_float(__builtin_convertvector(load<S16>(scales + 16), I16));
    }
    return s;
}

// ---------------------------------------------------------------------------- repacking
// Read one row of the file's blocks and spread it over a strip. `row` is 0..15 within the strip.
inline uint16_t load_half(const uint8_t* from) {
    uint16_t h;
    memcpy(&h, from, 2);
    return h;
}

// Write the 32 codes (0..255 each) of one row into a zeroed tile.
template <int kind>
inline void place_codes(uint8_t* tile, int row, const uint8_t codes[32]) {
    typedef Form<kind> F;
    uint8_t* low = tile;
    uint8_t* high = tile + F::low;
    for (int s = 0; s < 8; s++)
        for (int i = 0; i < 4; i++) {
            uint8_t code = codes[4 * s + i];
            int at = 4 * row + i;
            if constexpr (F::low == 512) {
                low[64 * s + at] = code;
            } else if constexpr (F::low == 128) {
                low[64 * (s / 4) + at] |= (uint8_t)((code & 3) << (2 * (s % 4)));
            } else {
                low[64 * (s % 4) + at] |= (uint8_t)((code & 15) << (s < 4 ? 0 : 4));
            }
            if constexpr (F::high == 64) {
                high[8 * s + at / 8] |= (uint8_t)((code >> 4 & 1) << (at % 8));
            } else if constexpr (F::high == 128) {
                high[64 * (s / 4) + at] |= (uint8_t)((code >> 4 & 3) << (2 * (s % 4)));
            }
        }
}

template <int kind>
inline void pack_row(const uint8_t* from, uint8_t* strip, int64_t blocks, int row, float scale) {
    typedef Form<kind> F;
    uint8_t* supers = strip + blocks * tile_bytes<kind>();
    for (int64_t b = 0; b < blocks; b++) {
        uint8_t* tile = strip + b * tile_bytes<kind>();
        uint8_t* scales = tile + F::low + F::high;
        uint8_t codes[32];
        if constexpr (kind == kQ4_0 || kind == kQ4_1 || kind == kQ5_0 || kind == kQ5_1) {
            constexpr bool minimum = kind == kQ4_1 || kind == kQ5_1;
            constexpr bool fifth = kind == kQ5_0 || kind == kQ5_1;
            const uint8_t* block = from + b * (18 + 2 * minimum + 4 * fifth);
            memcpy(scales + 2 * row, block, 2);
            if (minimum) memcpy(scales + 32 + 2 * row, block + 2, 2);
            block += 2 + 2 * minimum;
            if constexpr (!fifth) {
                // The file's nibble order is the tile's: a transposition of 4-byte words.
                for (int j = 0; j < 4; j++)
                    memcpy(tile + 64 * j + 4 * row, block + 4 * j, 4);
                continue;
            }
            uint32_t bits;
            memcpy(&bits, block, 4);
            block += 4;
            for (int i = 0; i < 16; i++) {
                codes[i] = (uint8_t)((block[i] & 15) | (bits >> i & 1) << 4);
                codes[i + 16] = (uint8_t)((block[i] >> 4) | (bits >> (i + 16) & 1) << 4);
            }
        } else if constexpr (kind == kQ8_0) {
            const uint8_t* block = from + b * 34;
            memcpy(scales + 2 * row, block, 2);
            for (int i = 0; i < 32; i++) codes[i] = (uint8_t)(block[2 + i] ^ 0x80);
        } else if constexpr (kind == kQ4_K || kind == kQ5_K) {
            constexpr int fifth = kind == kQ5_K ? 32 : 0;
            const uint8_t* block = from + b / 8 * (144 + fifth);
            int sub = (int)(b % 8);
            if (sub == 0) {
                uint8_t* super = supers + b / 8 * 64;
                memcpy(super + 2 * row, block, 2);
                memcpy(super + 32 + 2 * row, block + 2, 2);
            }
            const uint8_t* s = block + 4;
            scales[row] = sub < 4 ? (uint8_t)(s[sub] & 63)
                                          : (uint8_t)((s[sub + 4] & 15) | (s[sub - 4] >> 6) << 4);
            scales[16 + row] = sub < 4
                                           ? (uint8_t)(s[sub + 4] & 63)
                                           : (uint8_t)((s[sub + 4] >> 4) | (s[sub] >> 6) << 4);
            const uint8_t* nibbles = block + 16 + fifth + sub / 2 * 32;
            for (int i = 0; i < 32; i++) {
                codes[i] = sub % 2 ? (uint8_t)(nibbles[i] >> 4) : (uint8_t)(nibbles[i] & 15);
                if (fifth) codes[i] |= (uint8_t)((block[16 + i] >> sub & 1) << 4);
            }
        } else if constexpr (kind == kQ6_K) {
            const uint8_t* block = from + b / 8 * 210;
            int sub = (int)(b % 8), half = sub / 4, quarter = sub % 4;
            if (sub == 0) memcpy(supers + b / 8 * 32 + 2 * row, block + 208, 2);
            scales[row] = block[192 + 8 * half + 2 * quarter];
            scales[16 + row] = block[192 + 8 * half + 2 * quarter + 1];
            const uint8_t* low = block + 64 * half + 32 * (quarter & 1);
            const uint8_t* high = block + 128 + 32 * half;
            for (int i = 0; i < 32; i++)
                codes[i] = (uint8_t)((quarter < 2 ? low[i] & 15 : low[i] >> 4) |
                                     (high[i] >> (2 * quarter) & 3) << 4);
        } else {
            memcpy(supers + 4 * row, &scale, 4);
            for (int i = 0; i < 32; i++) codes[i] = from[b * 8 + i / 4] >> (2 * (i % 4)) & 3;
        }
        place_codes<kind>(tile, row, codes);
    }
}

// Pack rows 16 s .. 16 s + 15 of a file tensor into strip s; missing rows become zero weights.
inline void pack_strip(int kind, const uint8_t* rows, int64_t row_stride, int64_t row_count,
                       int64_t columns, int64_t strip, float scale, uint8_t* to) {
    int64_t blocks = columns / 32;
    memset(to, 0, (size_t)strip_bytes(kind, columns));
    for (int row = 0; row < 16; row++) {
        int64_t source = strip * 16 + row;
        if (source >= row_count) break;
        const uint8_t* from = rows + source * row_stride;
        switch (kind) {
            case kF32:
                for (int64_t k = 0; k < columns; k++) memcpy(to + k * 64 + 4 * row, from + 4 * k, 4);
                break;
            case kF16:
                for (int64_t k = 0; k < columns; k++) memcpy(to + k * 32 + 2 * row, from + 2 * k, 2);
                break;
            case kBF16:
                for (int64_t k = 0; k < columns; k++)
                    memcpy(to + k / 2 * 64 + 4 * row + 2 * (k % 2), from + 2 * k, 2);
                break;
            case kQ4_0: pack_row<kQ4_0>(from, to, blocks, row, scale); break;
            case kQ4_1: pack_row<kQ4_1>(from, to, blocks, row, scale); break;
            case kQ5_0: pack_row<kQ5_0>(from, to, blocks, row, scale); break;
            case kQ5_1: pack_row<kQ5_1>(from, to, blocks, row, scale); break;
            case kQ8_0: pack_row<kQ8_0>(from, to, blocks, row, scale); break;
            case kQ4_K: pack_row<kQ4_K>(from, to, blocks, row, scale); break;
            case kQ5_K: pack_row<kQ5_K>(from, to, blocks, row, scale); break;
            case kQ6_K: pack_row<kQ6_K>(from, to, blocks, row, scale); break;
            case kTernary: pack_row<kTernary>(from, to, blocks, row, scale); break;
        }
    }
}

// ---------------------------------------------------------------------------- one row back
template <int kind>
inline void unpack_row(const uint8_t* strip, int64_t blocks, int row, float* to) {
    for (int64_t b = 0; b < blocks; b++) {
        B64 codes[8];
        unpack_tile<kind>(strip, b, codes);
        TileScales scales = tile_scales<kind>(strip, blocks, b);
        float first[16], second[16], minimum[16];
        store(first, scales.scale);
        if constexpr (Form<kind>::scale == kSuperScale16) store(second, scales.second);
        if constexpr (Form<kind>::zero_shift < 0) store(minimum, scales.minimum);
        uint8_t bytes[512];
        memcpy(bytes, codes, 512);
        for (int i = 0; i < 32; i++) {
            int code = bytes[64 * (i / 4) + 4 * row + i % 4];
            float scale = first[row];
            if constexpr (Form<kind>::scale == kSuperScale16)
                if (i >= 16) scale = second[row];
            if constexpr (Form<kind>::zero_shift < 0) {
                to[32 * b + i] = scale * (float)code + minimum[row];
            } else {
                to[32 * b + i] = scale * (float)(code - (1 << Form<kind>::zero_shift));
            }
        }
    }
}

// Row `index` of a packed matrix as floats: the embedding look-up.
inline void unpack_matrix_row(int kind, const uint8_t* packed, int64_t columns, int64_t index,
                              float* to) {
    const uint8_t* strip = packed + index / 16 * strip_bytes(kind, columns);
    int row = (int)(index % 16);
    int64_t blocks = columns / 32;
    switch (kind) {
        case kF32:
            for (int64_t k = 0; k < columns; k++) memcpy(to + k, strip + k * 64 + 4 * row, 4);
            break;
        case kF16:
            for (int64_t k = 0; k < columns; k++)
                to[k] = half_to_float(load_half(strip + k * 32 + 2 * row));
            break;
        case kBF16:
            for (int64_t k = 0; k < columns; k++)
                to[k] = bfloat_to_float(load_half(strip + k / 2 * 64 + 4 * row + 2 * (k % 2)));
            break;
        case kQ4_0: unpack_row<kQ4_0>(strip, blocks, row, to); break;
        case kQ4_1: unpack_row<kQ4_1>(strip, blocks, row, to); break;
        case kQ5_0: unpack_row<kQ5_0>(strip, blocks, row, to); break;
        case kQ5_1: unpack_row<kQ5_1>(strip, blocks, row, to); break;
        case kQ8_0: unpack_row<kQ8_0>(strip, blocks, row, to); break;
        case kQ4_K: unpack_row<kQ4_K>(strip, blocks, row, to); break;
        case kQ5_K: unpack_row<kQ5_K>(strip, blocks, row, to); break;
        case kQ6_K: unpack_row<kQ6_K>(strip, blocks, row, to); break;
        case kTernary: unpack_row<kTernary>(strip, blocks, row, to); break;
    }
}

}  // namespace
