// Products with quantised weights, one linear layer at a time, and the repacking of file rows into
// tiles that decoder.inl.h reads.
#pragma once

#include <math.h>

#include "linear_tiles.h"

namespace {

const char* check_weights(const Buffer& rows, int64_t kind, int64_t columns) {
    static const int per_block[kKinds] = {4, 2, 2, 18, 20, 22, 24, 34, 144, 176, 210, 8};
    if (kind < 0 || kind >= kKinds) return "block_linear does not know this kind of weights";
    const int64_t values = kind <= kF16 ? 1 : kind >= kQ4_K && kind <= kQ6_K ? 256 : 32;
    if (columns < 1 || columns % values) return "the columns do not fill whole blocks";
    if (rows.rank != 2 || rows.type != DataType::uint8 ||
        rows.dims[1] != columns / values * per_block[kind])
        return "the weight rows have the wrong number of bytes";
    return nullptr;
}

// Argument: file rows u8 [rows, bytes]. Result: u8 [strips, strip_bytes]. Attributes: kind,
// columns, scale (ternary only).
const char* pack_blocks(const Call& call) {
    if (call.argument_count != 1 || call.result_count != 1)
        return "pack_blocks takes the rows and fills the strips";
    const Buffer &rows = call.arguments[0], &result = call.results[0];
    const int64_t kind = integer_attribute(call, "kind", -1);
    const int64_t columns = integer_attribute(call, "columns", 0);
    if (const char* problem = check_weights(rows, kind, columns)) return problem;
    const int64_t count = rows.dims[0], bytes = strip_bytes((int)kind, columns);
    if (elements(result) != ceil_div(count, 16) * bytes)
        return "the packed weights have the wrong size";
    const float scale = (float)real_attribute(call, "scale", 1.0);
    auto* to = (uint8_t*)result.data;
    constexpr int64_t kGrain = 4;
    parallel(ceil_div(ceil_div(count, 16), kGrain), [&](int64_t chunk) {
        const int64_t end = smaller(ceil_div(count, 16), (chunk + 1) * kGrain);
        for (int64_t strip = chunk * kGrain; strip < end; strip++)
            pack_strip((int)kind, (const uint8_t*)rows.data, rows.dims[1], count, columns, strip,
                       scale, to + strip * bytes);
    });
    return nullptr;
}

inline void norm_row(const float* x, const float* weight, int64_t size, float epsilon, float* to) {
    F16 squares = splat(0.0f);
    for (int64_t i = 0; i < size; i += 16) {
        F16 v = load_part(x + i, size - i);
        squares = fma16(v, v, squares);
    }
    const float factor = 1.0f / sqrtf(sum_lanes(squares) / (float)size + epsilon);
    for (int64_t i = 0; i < size; i += 16)
        store_part(to + i,
                   load_part(x + i, size - i) * splat(factor) * load_part(weight + i, size - i),
                   size - i);
}

// Arguments: x f32 [..., columns], file rows u8 [rows, bytes], bias f32 [rows] or [0] (, weight of
// an RMS norm of x f32 [columns]). Result: f32 [..., rows]. Attributes: kind, scale (, epsilon).
// Each thread packs a strip just before it is used, so the weights stay in their file form.
const char* block_linear(const Call& call) {
    if (call.argument_count < 3 || call.argument_count > 4 || call.result_count != 1)
        return "block_linear takes x, weights and a bias";
    const Buffer &x = call.arguments[0], &weights = call.arguments[1], &bias = call.arguments[2];
    const Buffer& result = call.results[0];
    const int64_t kind = integer_attribute(call, "kind", -1);
    if (x.rank < 1 || x.type != DataType::float32 || bias.type != DataType::float32)
        return "block_linear takes float32 x and bias";
    const int64_t columns = size_from_end(x, 1);
    if (const char* problem = check_weights(weights, kind, columns)) return problem;
    const int64_t outputs = weights.dims[0], rows = elements(x) / columns;
    if (elements(bias) != 0 && elements(bias) != outputs) return "the bias has the wrong length";
    if (rows == 0 || outputs == 0) return nullptr;
    const float scale = (float)real_attribute(call, "scale", 1.0);
    const float* shift = elements(bias) ? (const float*)bias.data : nullptr;

    Activations a = {};
    a.columns = columns;
    a.floats = (const float*)x.data;
    const float* norm = nullptr;
    if (call.argument_count == 4) {
        if (elements(call.arguments[3]) != columns || call.arguments[3].type != DataType::float32)
            return "the norm's weight must be float32 and as long as a row of x";
        norm = (const float*)call.arguments[3].data;
    }
    const float epsilon = (float)real_attribute(call, "epsilon", 0.0);
    const int64_t normed_bytes = norm ? round_up(rows * columns * 4, 64) : 0;
    const int64_t code_bytes = round_up(rows * columns, 64);
    const int64_t sum_bytes = round_up(rows * (columns / 32 + 1) * (int64_t)sizeof(BlockSums), 64);
    auto* memory = (uint8_t*)trimtab::scratch(
        (size_t)(normed_bytes + code_bytes + sum_bytes + rows * (columns + 1) * 2), 0);
    if (!memory) return "out of memory";
    if (norm) a.floats = (float*)memory;
    memory += normed_bytes;
    a.codes = (int8_t*)memory;
    a.sums = (BlockSums*)(memory + code_bytes);
    a.bfloats = (uint16_t*)(memory + code_bytes + sum_bytes);
    const int form = activation_form((int)kind);
    constexpr int64_t kGrain = 8;
    parallel(ceil_div(rows, kGrain), [&](int64_t chunk) {
        const int64_t end = smaller(rows, (chunk + 1) * kGrain);
        for (int64_t r = chunk * kGrain; r < end; r++) {
            if (norm)
                norm_row((const float*)x.data + r * columns, norm, columns, epsilon,
                         (float*)a.floats + r * columns);
            prepare_row(a.floats + r * columns, r, a, form);
        }
    });

    const int64_t bytes = strip_bytes((int)kind, columns);
    if (!trimtab::scratch((size_t)bytes, 1)) return "out of memory";
    auto* to = (float*)result.data;
    const char* problem = nullptr;
    parallel(ceil_div(outputs, 16), [&](int64_t strip) {
        auto* packed = (uint8_t*)trimtab::scratch((size_t)bytes, 1);
        if (!packed) {
            problem = "out of memory";
            return;
        }
        pack_strip((int)kind, (const uint8_t*)weights.data, weights.dims[1], outputs, columns,
                   strip, scale, packed);
        for (int64_t r = 0; r < rows; r += kTileRows) {
            F16 out[kTileRows];
            const int64_t count = smaller(rows - r, kTileRows), lanes = outputs - 16 * strip;
            tile_function((int)kind, (int)count)(packed, a, r, out);
            for (int64_t t = 0; t < count; t++)
                store_part(to + (r + t) * outputs + 16 * strip,
                           shift ? out[t] + load_part(shift + 16 * strip, lanes) : out[t], lanes);
        }
    });
    return problem;
}

}  // namespace
