// Grouped-query attention of new tokens over a key/value cache, causal, with optional windows.
//
// A cache layer is keys and values of shape [slots][kv_heads][rows][dim], float or bfloat16; the
// key of position p lies in row p % rows (a ring where rows are fewer than positions). Single
// tokens read the cache once, split over fixed blocks of positions; chunks of tokens go through
// small matrix products. Block borders are absolute positions, so neither neighbours in the batch
// nor threads change a result.
#pragma once

#include "vector16.h"

namespace {

constexpr int64_t kDecodeBlock = 256;  // positions per unit of work for single tokens
constexpr int64_t kChunkBlock = 128;   // positions per step for chunks
constexpr int64_t kChunkRows = 96;     // query rows (tokens x heads of one group) per chunk unit
constexpr int64_t kMaxHeadDim = 256;
constexpr float kMasked = -1e30f;

struct CacheLayer {
    void* keys;
    void* values;
    int64_t rows;
    int32_t bfloat;  // 1: bfloat16, 0: float
};

struct AttentionShape {
    int64_t heads, kv_heads, dim;
    int64_t window;  // 0: none
    float scale;
};

TRIMTAB_INLINE int64_t first_position(int64_t position, int64_t window) {
    return window > 0 && position - window + 1 > 0 ? position - window + 1 : 0;
}

// ---------------------------------------------------------------------------- shuffles
template <int width>
TRIMTAB_INLINE I16 keep_lanes() {
    I16 m;
    for (int l = 0; l < 16; l++) m[l] = l + ((l & width) ? 16 : 0);
    return m;
}
template <int width>
TRIMTAB_INLINE I16 swap_lanes() {
    I16 m;
    for (int l = 0; l < 16; l++) m[l] = (l ^ width) + ((l & width) ? 16 : 0);
    return m;
}
template <int width>
TRIMTAB_INLINE void add_halves(F16* v) {
    const I16 keep = keep_lanes<width>(), swap = swap_lanes<width>();
#pragma GCC unroll 8
    for (int i = 0; i < width; i++)
        v[i] = __builtin_shuffle(v[i], v[i + width], keep) +
               __builtin_shuffle(v[i], v[i + width], swap);
}
// Lane i of the result is the sum over the lanes of v[i].
TRIMTAB_INLINE F16 sum_each(F16* v) {
    add_halves<8>(v);
    add_halves<4>(v);
    add_halves<2>(v);
    add_halves<1>(v);
    return v[0];
}
template <int width>
TRIMTAB_INLINE void exchange(U16* v) {
    // Of the pair (i, i + width), lanes with the bit set in the first trade places with lanes
    // without it in the second.
    I16 first, second;
    for (int l = 0; l < 16; l++) {
        first[l] = (l & width) ? (l ^ width) + 16 : l;
        second[l] = (l & width) ? l + 16 : (l ^ width);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        if (i & width) continue;
        U16 a = v[i], b = v[i + width];
        v[i] = __builtin_shuffle(a, b, first);
        v[i + width] = __builtin_shuffle(a, b, second);
    }
}
TRIMTAB_INLINE void transpose16(U16* v) {
    exchange<8>(v);
    exchange<4>(v);
    exchange<2>(v);
    exchange<1>(v);
}

// ---------------------------------------------------------------------------- cache elements
template <bool bfloat>
TRIMTAB_INLINE F16 cache_vector(const void* base, int64_t index, int64_t count) {
    if constexpr (bfloat) {
        const uint16_t* from = (const uint16_t*)base + index;
        if (count >= 16) return bfloats_to_float(from);
        uint16_t part[16] = {0};
        memcpy(part, from, (size_t)count * 2);
        return bfloats_to_float(part);
    } else {
        return load_part((const float*)base + index, count);
    }
}
TRIMTAB_INLINE void store_bfloats(uint16_t* to, F16 v) {
#if defined(__AVX512BF16__)
    __m256bh narrow = _mm512_cvtneps_pbh((__m512)v);
    memcpy(to, &narrow, 32);
#else
    typedef uint16_t H16 __attribute__((vector_size(32)));
    U16 w = (U16)v;
    store(to, __builtin_convertvector((w + 0x7fffu + ((w >> 16) & 1u)) >> 16, H16));
#endif
}

// ---------------------------------------------------------------------------- single tokens
// Softmax parts of one kv head's queries over positions [begin, end): outputs are not divided by
// the sum. `query` is [group][dim], already scaled; `part` is [group][dim + 2] = sums of values,
// then largest score and sum of exponentials.
template <bool bfloat>
void decode_part(const float* query, int64_t group, int64_t dim, const void* keys,
                 const void* values, int64_t rows, int64_t begin, int64_t end, float* part) {
    // Scores of at most 4 heads at a time bound the stack.
    constexpr int kHeads = 4;
    alignas(64) float scores[kHeads][kDecodeBlock];
    const int64_t count = end - begin, vectors = (dim + 15) / 16;
    for (int64_t g0 = 0; g0 < group; g0 += kHeads) {
        const int64_t heads = group - g0 < kHeads ? group - g0 : kHeads;
        int64_t row = begin % rows;
        for (int64_t p0 = 0; p0 < count; p0 += 16) {
            const int64_t lanes = count - p0 < 16 ? count - p0 : 16;
            F16 sums[kHeads][16];
            for (int h = 0; h < heads; h++)
                for (int i = 0; i < 16; i++) sums[h][i] = splat(0.0f);
            for (int64_t i = 0; i < lanes; i++) {
                const int64_t at = row * dim;
                for (int64_t c = 0; c < vectors; c++) {
                    F16 k = cache_vector<bfloat>(keys, at + 16 * c, dim - 16 * c);
                    for (int64_t h = 0; h < heads; h++)
                        sums[h][i] = fma16(
                            k, load_part(query + (g0 + h) * dim + 16 * c, dim - 16 * c), sums[h][i]);
                }
                if (++row == rows) row = 0;
            }
            for (int64_t h = 0; h < heads; h++) {
                F16 s = sum_each(sums[h]);
                store(scores[h] + p0, s);
                for (int64_t i = lanes; i < 16; i++) scores[h][p0 + i] = kMasked;
            }
        }
        const int64_t padded = (count + 15) / 16 * 16;
        for (int64_t h = 0; h < heads; h++) {
            float* out = part + (g0 + h) * (dim + 2);
            F16 largest = splat(kMasked);
            for (int64_t p = 0; p < padded; p += 16) largest = max16(largest, load<F16>(scores[h] + p));
            float top = max_lanes(largest);
            F16 sum = splat(0.0f);
            for (int64_t p = 0; p < padded; p += 16) {
                F16 e = exp16(load<F16>(scores[h] + p) - splat(top));
                store(scores[h] + p, e);
                sum = sum + e;
            }
            out[dim] = top;
            out[dim + 1] = sum_lanes(sum);
        }
        for (int64_t c0 = 0; c0 < vectors; c0 += 4) {
            const int64_t chunk = vectors - c0 < 4 ? vectors - c0 : 4;
            F16 acc[kHeads][4];
            for (int h = 0; h < kHeads; h++)
                for (int c = 0; c < 4; c++) acc[h][c] = splat(0.0f);
            int64_t at_row = begin % rows;
            for (int64_t p = 0; p < count; p++) {
                const int64_t at = at_row * dim + 16 * c0;
                for (int64_t c = 0; c < chunk; c++) {
                    F16 v = cache_vector<bfloat>(values, at + 16 * c, dim - 16 * (c0 + c));
                    for (int h = 0; h < kHeads; h++)
                        if (h < heads) acc[h][c] = fma16(v, splat(scores[h][p]), acc[h][c]);
                }
                if (++at_row == rows) at_row = 0;
            }
            for (int64_t h = 0; h < heads; h++)
                for (int64_t c = 0; c < chunk; c++)
                    store_part(part + (g0 + h) * (dim + 2) + 16 * (c0 + c), acc[h][c],
                               dim - 16 * (c0 + c));
        }
    }
}

// The common case of decode_part, with everything that the loops need in registers.
template <bool bfloat, int heads>
void decode_part_64(const float* query, const void* keys, const void* values, int64_t rows,
                    int64_t begin, int64_t end, float* part) {
    constexpr int64_t dim = 64;
    alignas(64) float scores[heads][kDecodeBlock];
    const int64_t count = end - begin;
    int64_t row = begin % rows;
    F16 largest[heads];
    for (int h = 0; h < heads; h++) largest[h] = splat(kMasked);
    for (int64_t p0 = 0; p0 < count; p0 += 16) {
        const int64_t lanes = count - p0 < 16 ? count - p0 : 16;
        alignas(64) float products[heads][16][16];
        for (int64_t i = 0; i < lanes; i++) {
            F16 acc[heads];
            for (int h = 0; h < heads; h++) acc[h] = splat(0.0f);
            // The cache comes from memory: this row of the values and a later one of the keys are
            // asked for while the scores are made.
            constexpr int64_t bytes = dim * (bfloat ? 2 : 4);
            for (int64_t line = 0; line < bytes; line += 64) {
                __builtin_prefetch((const char*)values + row * bytes + line);
                __builtin_prefetch((const char*)keys + (row + 24) * bytes + line);
            }
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                F16 k = cache_vector<bfloat>(keys, row * dim + 16 * c, 16);
#pragma GCC unroll 4
                for (int h = 0; h < heads; h++)
                    acc[h] = fma16(k, load<F16>(query + h * dim + 16 * c), acc[h]);
            }
            for (int h = 0; h < heads; h++) store(products[h][i], acc[h]);
            if (++row == rows) row = 0;
        }
        for (int h = 0; h < heads; h++) {
            F16 v[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) v[i] = load<F16>(products[h][i]);
            F16 s = sum_each(v);
            store(scores[h] + p0, s);
            for (int64_t i = lanes; i < 16; i++) scores[h][p0 + i] = kMasked;
            largest[h] = max16(largest[h], load<F16>(scores[h] + p0));
        }
    }
    const int64_t padded = (count + 15) / 16 * 16;
    for (int h = 0; h < heads; h++) {
        float top = max_lanes(largest[h]);
        F16 sum = splat(0.0f);
        for (int64_t p = 0; p < padded; p += 16) {
            F16 e = exp16(load<F16>(scores[h] + p) - splat(top));
            store(scores[h] + p, e);
            sum = sum + e;
        }
        part[h * (dim + 2) + dim] = top;
        part[h * (dim + 2) + dim + 1] = sum_lanes(sum);
    }
    F16 acc[heads][4];
    for (int h = 0; h < heads; h++)
        for (int c = 0; c < 4; c++) acc[h][c] = splat(0.0f);
    row = begin % rows;
    for (int64_t p = 0; p < count; p++) {
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            F16 v = cache_vector<bfloat>(values, row * dim + 16 * c, 16);
#pragma GCC unroll 4
            for (int h = 0; h < heads; h++) acc[h][c] = fma16(v, splat(scores[h][p]), acc[h][c]);
        }
        if (++row == rows) row = 0;
    }
    for (int h = 0; h < heads; h++)
        for (int c = 0; c < 4; c++) store(part + h * (dim + 2) + 16 * c, acc[h][c]);
}

template <bool bfloat>
void decode_unit(const float* query, int64_t group, int64_t dim, const void* keys,
                 const void* values, int64_t rows, int64_t begin, int64_t end, float* part) {
    if (dim == 64 && group <= 4) {
        switch (group) {
            case 1: return decode_part_64<bfloat, 1>(query, keys, values, rows, begin, end, part);
            case 2: return decode_part_64<bfloat, 2>(query, keys, values, rows, begin, end, part);
            case 3: return decode_part_64<bfloat, 3>(query, keys, values, rows, begin, end, part);
            case 4: return decode_part_64<bfloat, 4>(query, keys, values, rows, begin, end, part);
        }
    }
    decode_part<bfloat>(query, group, dim, keys, values, rows, begin, end, part);
}

// Join the parts of one head, `stride` floats apart, in the order of positions.
inline void combine_parts(const float* parts, int64_t count, int64_t stride, int64_t dim, float* out) {
    float top = kMasked;
    for (int64_t i = 0; i < count; i++) top = parts[i * stride + dim] > top ? parts[i * stride + dim] : top;
    float total = 0;
    for (int64_t d = 0; d < dim; d++) out[d] = 0;
    for (int64_t i = 0; i < count; i++) {
        const float* part = parts + i * stride;
        float lanes[16];
        store(lanes, exp16(splat(part[dim] - top)));
        total += lanes[0] * part[dim + 1];
        for (int64_t d = 0; d < dim; d++) out[d] += lanes[0] * part[d];
    }
    float inverse = 1.0f / total;
    for (int64_t d = 0; d < dim; d++) out[d] *= inverse;
}

// ---------------------------------------------------------------------------- chunks of tokens
#if defined(__AVX512BF16__)
constexpr bool kPairDots = true;
#else
constexpr bool kPairDots = false;
#endif

// Scratch of one thread for chunk attention. Query rows are padded to kChunkRows.
struct ChunkScratch {
    alignas(64) uint32_t keys[kMaxHeadDim * kChunkBlock];    // tiles of 16 positions: [dim][16]
    alignas(64) uint32_t values[kMaxHeadDim * kChunkBlock];  // [positions][dim rounded up to 16]
    alignas(64) float query[kChunkRows * kMaxHeadDim];       // floats, or bfloat pairs
    alignas(64) float scores[kChunkRows * kChunkBlock];      // then weights (floats or pairs)
    alignas(64) float out[kChunkRows * kMaxHeadDim];
    float top[kChunkRows], sum[kChunkRows];
};

// scores[12 rows][32 positions] for `steps` dims (or pairs of dims).
template <bool pairs>
TRIMTAB_INLINE void score_tile(const float* query, int64_t query_stride, const uint32_t* keys,
                               int64_t steps, float* scores) {
    constexpr int R = 12;
    F16 acc[R][2];
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = splat(0.0f);
    for (int64_t k = 0; k < steps; k++) {
        U16 a = load<U16>(keys + 16 * k), b = load<U16>(keys + 16 * (steps + k));
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            if constexpr (pairs) {
                uint32_t q = load<uint32_t>(query + r * query_stride + k);
                acc[r][0] = dot2_bfloat(acc[r][0], a, q);
                acc[r][1] = dot2_bfloat(acc[r][1], b, q);
            } else {
                F16 q = splat(query[r * query_stride + k]);
                acc[r][0] = fma16((F16)a, q, acc[r][0]);
                acc[r][1] = fma16((F16)b, q, acc[r][1]);
            }
        }
    }
    for (int r = 0; r < R; r++) {
        store(scores + r * kChunkBlock, acc[r][0]);
        store(scores + r * kChunkBlock + 16, acc[r][1]);
    }
}

// out[6 rows][16 * vectors dims] += weights x values over `steps` positions (or pairs of them).
template <bool pairs, int vectors>
TRIMTAB_INLINE void value_tile(const float* weights, const uint32_t* values, int64_t value_stride,
                               int64_t steps, float* out, int64_t out_stride) {
    constexpr int R = 6;
    F16 acc[R][vectors];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < vectors; c++) acc[r][c] = load<F16>(out + r * out_stride + 16 * c);
    for (int64_t p = 0; p < steps; p++) {
        U16 v[vectors];
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) v[c] = load<U16>(values + p * value_stride + 16 * c);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            if constexpr (pairs) {
                uint32_t w = load<uint32_t>(weights + r * kChunkBlock + p);
#pragma GCC unroll 4
                for (int c = 0; c < vectors; c++) acc[r][c] = dot2_bfloat(acc[r][c], v[c], w);
            } else {
                F16 w = splat(weights[r * kChunkBlock + p]);
#pragma GCC unroll 4
                for (int c = 0; c < vectors; c++) acc[r][c] = fma16((F16)v[c], w, acc[r][c]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < vectors; c++) store(out + r * out_stride + 16 * c, acc[r][c]);
}

template <bool pairs>
inline void value_tiles(const float* weights, const uint32_t* values, int64_t width, int64_t steps,
                        float* out) {
    for (int64_t c = 0; c < width; c += 64) {
        switch ((width - c) / 16) {
            case 1: value_tile<pairs, 1>(weights, values + c, width, steps, out + c, width); break;
            case 2: value_tile<pairs, 2>(weights, values + c, width, steps, out + c, width); break;
            case 3: value_tile<pairs, 3>(weights, values + c, width, steps, out + c, width); break;
            default: value_tile<pairs, 4>(weights, values + c, width, steps, out + c, width); break;
        }
    }
}

// Copy positions [begin, begin + count) of one kv head into the tile orders above; rows past
// `count` become zero up to a multiple of 32.
template <bool bfloat, bool pairs>
inline void pack_positions(const void* keys, const void* values, int64_t rows, int64_t dim,
                           int64_t begin, int64_t count, ChunkScratch* s) {
    const int64_t width = round_up(dim, 16), padded = round_up(count, 32);
    const int64_t words = pairs ? round_up(dim, 2) / 2 : dim;  // 32-bit words of a packed key
    for (int64_t p0 = 0; p0 < padded; p0 += 16) {
        uint32_t* to = s->keys + p0 * words;
        for (int64_t w0 = 0; w0 < words; w0 += 16) {
            U16 block[16];
            for (int i = 0; i < 16; i++) {
                block[i] = U16{};
                if (p0 + i >= count) continue;
                const int64_t at = (begin + p0 + i) % rows * dim;
                if constexpr (pairs) {
                    const uint16_t* from = (const uint16_t*)keys + at + 2 * w0;
                    if (dim - 2 * w0 >= 32) {
                        block[i] = load<U16>(from);
                    } else {
                        memcpy(&block[i], from, (size_t)(dim - 2 * w0) * 2);
                    }
                } else {
                    block[i] = (U16)cache_vector<bfloat>(keys, at + w0, dim - w0);
                }
            }
            transpose16(block);
            for (int i = 0; i < 16 && w0 + i < words; i++) store(to + 16 * (w0 + i), block[i]);
        }
    }
    if constexpr (pairs) {
        for (int64_t p = 0; p < padded; p += 2) {
            typedef uint16_t H16 __attribute__((vector_size(32)));
            for (int64_t c = 0; c < width; c += 16) {
                U16 two[2] = {U16{}, U16{}};
                for (int i = 0; i < 2; i++) {
                    if (p + i >= count) continue;
                    const uint16_t* from = (const uint16_t*)values + (begin + p + i) % rows * dim + c;
                    H16 h = H16{};
                    if (dim - c >= 16) {
                        h = load<H16>(from);
                    } else {
                        memcpy(&h, from, (size_t)(dim - c) * 2);
                    }
                    two[i] = __builtin_convertvector(h, U16);
                }
                store(s->values + p / 2 * width + c, two[0] | (two[1] << 16));
            }
        }
    } else {
        for (int64_t p = 0; p < padded; p++)
            for (int64_t c = 0; c < width; c += 16) {
                F16 v = splat(0.0f);
                if (p < count)
                    v = cache_vector<bfloat>(values, (begin + p) % rows * dim + c, dim - c);
                store(s->values + p * width + c, v);
            }
    }
}

// Attention of `tokens` consecutive tokens (first at `position`) of one kv head. `query` holds the
// group's heads of token t at query + t * query_stride, [group][dim], already scaled; results go to
// out + t * out_stride in the same order.
template <bool bfloat>
void chunk_unit(const float* query, int64_t query_stride, int64_t tokens, int64_t position,
                int64_t group, int64_t dim, const void* keys, const void* values, int64_t rows,
                int64_t window, float* out, int64_t out_stride, ChunkScratch* s) {
    constexpr bool pairs = bfloat && kPairDots;
    const int64_t width = round_up(dim, 16), used = tokens * group, padded = round_up(used, 12);
    const int64_t words = pairs ? round_up(dim, 2) / 2 : dim;
    memset(s->query, 0, (size_t)(padded * words) * 4);
    for (int64_t r = 0; r < used; r++) {
        const float* from = query + r / group * query_stride + r % group * dim;
        if constexpr (pairs) {
            uint16_t* to = (uint16_t*)(s->query + r * words);
            for (int64_t d = 0; d < dim; d++) to[d] = float_to_bfloat(from[d]);
        } else {
            memcpy(s->query + r * words, from, (size_t)dim * 4);
        }
    }
    memset(s->out, 0, (size_t)(padded * width) * 4);
    for (int64_t r = 0; r < padded; r++) s->top[r] = kMasked, s->sum[r] = 0;

    const int64_t last = position + tokens - 1;
    const int64_t start = first_position(position, window) / kChunkBlock * kChunkBlock;
    for (int64_t block = start; block <= last; block += kChunkBlock) {
        // In a ring the rows of positions before the window may be overwritten: skip them.
        const int64_t oldest = first_position(position, window);
        const int64_t skip = oldest > block ? (oldest - block) / 32 * 32 : 0;
        const int64_t begin = block + skip;
        const int64_t count = (last + 1 < block + kChunkBlock ? last + 1 : block + kChunkBlock) - begin;
        const int64_t span = round_up(count, 32);
        pack_positions<bfloat, pairs>(keys, values, rows, dim, begin, count, s);
        for (int64_t r = 0; r < padded; r += 12)
            for (int64_t p = 0; p < span; p += 32)
                score_tile<pairs>(s->query + r * words, words, s->keys + p * words, words,
                                  s->scores + r * kChunkBlock + p);
        const bool border = begin + span > position + 1 || first_position(last, window) > begin;
        for (int64_t r = 0; r < padded; r++) {
            float* row = s->scores + r * kChunkBlock;
            const int64_t at = position + (r < used ? r / group : tokens - 1);
            if (border) {
                // Visible positions of this row: [low, high) within the span.
                int64_t low = first_position(at, window) - begin, high = at + 1 - begin;
                if (low < 0) low = 0;
                for (int64_t p = 0; p < low && p < span; p++) row[p] = kMasked;
                for (int64_t p = high < 0 ? 0 : high; p < span; p++) row[p] = kMasked;
            }
            F16 largest = splat(kMasked);
            for (int64_t p = 0; p < span; p += 16) largest = max16(largest, load<F16>(row + p));
            float top = max_lanes(largest);
            if (top < s->top[r]) top = s->top[r];
            if (top > s->top[r] && s->sum[r] != 0) {
                float lanes[16];
                store(lanes, exp16(splat(s->top[r] - top)));
                s->sum[r] *= lanes[0];
                for (int64_t c = 0; c < width; c += 16)
                    store(s->out + r * width + c, load<F16>(s->out + r * width + c) * splat(lanes[0]));
            }
            s->top[r] = top;
            F16 sum = splat(0.0f);
            // A row whose positions are all masked so far must add nothing.
            const bool empty = top <= kMasked;
            for (int64_t p = 0; p < span; p += 16) {
                F16 e = empty ? splat(0.0f) : exp16(load<F16>(row + p) - splat(top));
                sum = sum + e;
                if constexpr (pairs) {
                    store_bfloats((uint16_t*)row + p, e);
                } else {
                    store(row + p, e);
                }
            }
            s->sum[r] += sum_lanes(sum);
        }
        for (int64_t r = 0; r < padded; r += 6)
            value_tiles<pairs>(s->scores + r * kChunkBlock, s->values, width, pairs ? span / 2 : span,
                               s->out + r * width);
    }
    for (int64_t r = 0; r < used; r++) {
        float inverse = 1.0f / s->sum[r];
        float* to = out + r / group * out_stride + r % group * dim;
        for (int64_t d = 0; d < dim; d++) to[d] = s->out[r * width + d] * inverse;
    }
}

}  // namespace
