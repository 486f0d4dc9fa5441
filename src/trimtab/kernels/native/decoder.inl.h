// A whole decoder step in one call: every layer for a ragged batch of tokens, from token ids to
// logits, over packed weights and a key/value cache.
//
// Rows are tokens. Tokens of one slot are consecutive and in rising position; each row sees its own
// slot's cache only. Every sum of a row has one order, whatever else is in the batch.
#include "attention_tiles.h"
#include "block_linear.h"

namespace {

constexpr int64_t kPlanMagic = 0x31706574735f7474;  // layout version of the structures below
constexpr int64_t kChunkFrom = 8;  // tokens of one slot from which chunk attention is used
constexpr int kMaxFrequencyTables = 4;

// The structures are written by decoder_plan.py; offsets are bytes into the weights, -1 if absent.
struct Matrix {
    int64_t offset, bias, kind, rows, columns;
};
struct Layer {
    Matrix query, key, value, output, gate, up, down;
    int64_t attention_norm, query_norm, key_norm, attention_sub_norm, post_attention_norm;
    int64_t feed_forward_norm, feed_forward_sub_norm, post_feed_forward_norm;
    int64_t window, frequencies;
};
struct Plan {
    int64_t magic, layers, hidden, feed_forward, heads, kv_heads, head_dim, vocabulary;
    int64_t rotary_half, activation, final_norm;
    double epsilon, embedding_scale, score_scale, logit_scale;
    Matrix embedding, head;
};
enum Activation : int64_t { kSilu = 0, kGeluTanh = 1, kReluSquared = 2 };

// One run of consecutive tokens of a slot.
struct Run {
    int64_t first, count, slot, position;
};
struct Unit {  // of attention work
    int32_t run, kv_head;
    int64_t row, begin, end;  // a part of one token's positions, or a range of a run's tokens
    float* part;
};

struct Step {
    const uint8_t* weights;
    Plan plan;
    const Layer* layers;
    uint8_t* cache;
    const int64_t* cache_table;  // [layers][3]: bytes of keys, bytes of values, rows
    int64_t slots;
    bool cache_bfloat;
    int64_t query_stride;  // floats between the queries of consecutive rows
    const int32_t *tokens, *slot_of, *positions;
    int64_t rows;
    const Run* runs;
    int64_t run_count;
    // workspaces
    float *x, *normed, *projected, *attended, *product, *delta;
    float* angles[kMaxFrequencyTables];  // [rows][head_dim]: cosines, then sines
    int64_t angle_key[kMaxFrequencyTables];
    Activations narrow, wide;  // inputs of width hidden or heads * dim, and feed_forward
    float* parts;
    Unit* units;
};

TRIMTAB_INLINE const float* vector_at(const Step& s, int64_t offset) {
    return offset < 0 ? nullptr : (const float*)(s.weights + offset);
}

// ---------------------------------------------------------------------------- rows
// A few rows at a time: one row is too little work for a thread to fetch.
template <class Body>
inline void for_rows(int64_t rows, const Body& body) {
    constexpr int64_t kGrain = 8;
    parallel(ceil_div(rows, kGrain), [&](int64_t chunk) {
        const int64_t end = smaller(rows, (chunk + 1) * kGrain);
        for (int64_t r = chunk * kGrain; r < end; r++) body(r);
    });
}

// Normalise (if there is a weight) and convert rows of x to the forms that `forms` names. Returns
// the activations to multiply; `store_floats` is where normed rows go.
inline Activations prepare(const Step& s, const float* x, int64_t rows, int64_t columns,
                           const float* weight, int forms, const Activations& storage,
                           float* store_floats) {
    Activations a = storage;
    a.columns = columns;
    a.floats = weight ? store_floats : x;
    for_rows(rows, [&](int64_t r) {
        const float* row = x + r * columns;
        if (weight) {
            norm_row(row, weight, columns, (float)s.plan.epsilon, store_floats + r * columns);
            row = store_floats + r * columns;
        }
        prepare_row(row, r, a, forms);
    });
    return a;
}

// ---------------------------------------------------------------------------- products
// sink(row, strip, values) for strips [first, last) of one matrix. Rows go in blocks, so that the
// activations of a block stay in the second-level cache while the strips pass.
template <class Sink>
inline void multiply_strips(const uint8_t* packed, const Matrix& m, const Activations& x,
                            int64_t rows, int64_t first, int64_t last, const Sink& sink) {
    constexpr int64_t kRowBlock = 16 * kTileRows;
    const int64_t bytes = strip_bytes((int)m.kind, m.columns);
    const TileFunction full = tile_function((int)m.kind, kTileRows);
    for (int64_t block = 0; block < rows; block += kRowBlock) {
        const int64_t end = smaller(rows, block + kRowBlock);
        for (int64_t strip = first; strip < last; strip++)
            for (int64_t r = block; r < end; r += kTileRows) {
                F16 out[kTileRows];
                const int64_t count = smaller(end - r, kTileRows);
                (count == kTileRows ? full : tile_function((int)m.kind, (int)count))(
                    packed + strip * bytes, x, r, out);
                for (int64_t t = 0; t < count; t++) sink(r + t, strip, out[t]);
            }
    }
}

TRIMTAB_INLINE F16 add_bias(F16 v, const float* bias, const Matrix& m, int64_t strip) {
    return bias ? v + load_part(bias + 16 * strip, m.rows - 16 * strip) : v;
}

// How many strips a unit of work takes. Few rows stream weights: two units a thread, long enough
// for the prefetchers. Many rows compute: small units balance.
inline int64_t strips_per_chunk(int64_t strips, int64_t rows) {
    const int64_t units = rows < 16 ? 2 * trimtab::thread_count() : 4 * trimtab::thread_count();
    return larger(1, smaller(ceil_div(strips, units), rows < 16 ? strips : 16));
}

// Several matrices of one input side by side: sink(matrix, row, strip, values).
template <class Sink>
inline void multiply_many(const Step& s, const Matrix* const* matrices, int count,
                          const Activations& x, int64_t rows, const Sink& sink) {
    int64_t strips = 0;
    for (int i = 0; i < count; i++) strips += ceil_div(matrices[i]->rows, 16);
    const int64_t step = strips_per_chunk(strips, rows);
    parallel(ceil_div(strips, step), [&](int64_t chunk) {
        const int64_t begin = chunk * step, end = smaller(strips, begin + step);
        int64_t base = 0;
        for (int i = 0; i < count; i++) {
            const Matrix& m = *matrices[i];
            const int64_t own = ceil_div(m.rows, 16);
            const int64_t first = larger(0, begin - base), last = smaller(own, end - base);
            base += own;
            if (first >= last) continue;
            const float* bias = vector_at(s, m.bias);
            multiply_strips(s.weights + m.offset, m, x, rows, first, last,
                            [&](int64_t row, int64_t strip, F16 v) TRIMTAB_LAMBDA {
                                sink(i, row, strip, add_bias(v, bias, m, strip));
                            });
        }
    });
}

// residual += x W (+ bias), or through a norm of the product where the model has one.
inline void project_back(const Step& s, const Matrix& m, const Activations& x, int64_t rows,
                         int64_t post_norm) {
    const int64_t hidden = s.plan.hidden;
    const Matrix* one[] = {&m};
    float* to = post_norm < 0 ? s.x : s.delta;
    const bool add = post_norm < 0;
    multiply_many(s, one, 1, x, rows, [&](int, int64_t row, int64_t strip, F16 v) TRIMTAB_LAMBDA {
        float* at = to + row * hidden + 16 * strip;
        const int64_t lanes = hidden - 16 * strip;
        store_part(at, add ? load_part(at, lanes) + v : v, lanes);
    });
    if (add) return;
    const float* weight = vector_at(s, post_norm);
    for_rows(rows, [&](int64_t r) {
        float* row = s.delta + r * hidden;
        norm_row(row, weight, hidden, (float)s.plan.epsilon, row);
        for (int64_t i = 0; i < hidden; i += 16)
            store_part(s.x + r * hidden + i,
                       load_part(s.x + r * hidden + i, hidden - i) + load_part(row + i, hidden - i),
                       hidden - i);
    });
}

TRIMTAB_INLINE F16 activate(int64_t kind, F16 gate) {
    const F16 one = splat(1.0f);
    if (kind == kSilu) return gate / (one + exp16(-gate));
    if (kind == kGeluTanh) {
        F16 twice = splat(1.5957691216057308f) *
                    fma16(gate * gate * gate, splat(0.044715f), gate);
        return gate / (one + exp16(-twice));
    }
    F16 positive = max16(gate, splat(0.0f));
    return positive * positive;
}

// activation(x Wg) * (x Wu), straight into int8 blocks where the next product takes those.
inline void gated_product(const Step& s, const Layer& layer, const Activations& x, int64_t rows,
                          bool to_blocks) {
    const Matrix &gate = layer.gate, &up = layer.up;
    const int64_t width = s.plan.feed_forward, strips = ceil_div(width, 16);
    const int64_t gate_bytes = strip_bytes((int)gate.kind, gate.columns);
    const int64_t up_bytes = strip_bytes((int)up.kind, up.columns);
    const float *gate_bias = vector_at(s, gate.bias), *up_bias = vector_at(s, up.bias);
    const int64_t pairs = ceil_div(strips, 2);
    const int64_t step = strips_per_chunk(pairs, rows);
    constexpr int64_t kRowBlock = 16 * kTileRows;
    parallel(ceil_div(pairs, step), [&](int64_t chunk) {
        for (int64_t block = 0; block < rows; block += kRowBlock) {
            const int64_t block_end = smaller(rows, block + kRowBlock);
            const int64_t pair_end = smaller(pairs, (chunk + 1) * step);
            for (int64_t pair = chunk * step; pair < pair_end; pair++)
                for (int64_t r = block; r < block_end; r += kTileRows) {
                    const int count = (int)smaller(block_end - r, kTileRows);
                    const TileFunction gate_tile = tile_function((int)gate.kind, count);
                    const TileFunction up_tile = tile_function((int)up.kind, count);
                    F16 g[2][kTileRows], u[2][kTileRows];
                    const int halves = 2 * pair + 1 < strips ? 2 : 1;
                    for (int h = 0; h < halves; h++)
                        gate_tile(s.weights + gate.offset + (2 * pair + h) * gate_bytes, x, r, g[h]);
                    for (int h = 0; h < halves; h++)
                        up_tile(s.weights + up.offset + (2 * pair + h) * up_bytes, x, r, u[h]);
                    for (int h = 0; h < halves; h++)
                        for (int t = 0; t < count; t++)
                            g[h][t] = activate(s.plan.activation,
                                               add_bias(g[h][t], gate_bias, gate, 2 * pair + h)) *
                                      add_bias(u[h][t], up_bias, up, 2 * pair + h);
                    for (int t = 0; t < count; t++) {
                        const int64_t row = r + t;
                        if (to_blocks) {
                            quantize_block_absmax(g[0][t], g[1][t],
                                                  s.wide.codes + row * width + 32 * pair,
                                                  s.wide.sums + row * (width / 32) + pair);
                        } else {
                            for (int h = 0; h < halves; h++)
                                store_part(s.product + row * width + 32 * pair + 16 * h, g[h][t],
                                           width - 32 * pair - 16 * h);
                        }
                    }
                }
        }
    });
}

// ---------------------------------------------------------------------------- rotary, cache
inline void rotate(float* head, const float* angles, int64_t dim, bool half) {
    const int64_t pairs = dim / 2;
    const float *cosines = angles, *sines = angles + pairs;
    if (half) {
        for (int64_t m = 0; m < pairs; m += 16) {
            const int64_t lanes = pairs - m;
            F16 c = load_part(cosines + m, lanes), n = load_part(sines + m, lanes);
            F16 a = load_part(head + m, lanes), b = load_part(head + pairs + m, lanes);
            store_part(head + m, a * c - b * n, lanes);
            store_part(head + pairs + m, b * c + a * n, lanes);
        }
    } else {
        // The partner of each lane is its neighbour; even lanes subtract.
        const I16 swap = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14};
        const I16 low = {0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7};
        const I16 sign = {INT32_MIN, 0, INT32_MIN, 0, INT32_MIN, 0, INT32_MIN, 0,
                          INT32_MIN, 0, INT32_MIN, 0, INT32_MIN, 0, INT32_MIN, 0};
        for (int64_t m = 0; m < pairs; m += 8) {
            const int64_t lanes = 2 * (pairs - m);
            F16 c = __builtin_shuffle(load_part(cosines + m, smaller(8, pairs - m)), low);
            F16 n = __builtin_shuffle(load_part(sines + m, smaller(8, pairs - m)), low);
            F16 v = load_part(head + 2 * m, lanes);
            F16 partner = (F16)((I16)__builtin_shuffle(v, swap) ^ sign);
            store_part(head + 2 * m, v * c + partner * n, lanes);
        }
    }
}

inline void fill_angles(const float* frequencies, int64_t pairs, int64_t position, float* to) {
    for (int64_t m = 0; m < pairs; m++) {
        const float angle = (float)position * frequencies[m];
        to[m] = cosf(angle);
        to[pairs + m] = sinf(angle);
    }
}

inline void write_cache_row(void* base, int64_t at, const float* from, int64_t dim, bool bfloat) {
    if (bfloat) {
        uint16_t* to = (uint16_t*)base + at;
        int64_t d = 0;
        for (; d + 16 <= dim; d += 16) store_bfloats(to + d, load<F16>(from + d));
        for (; d < dim; d++) to[d] = float_to_bfloat(from[d]);
    } else {
        memcpy((float*)base + at, from, (size_t)dim * 4);
    }
}

// Head norms, rotation and scaling of one token's queries and keys in place; its keys and values
// into the cache.
inline void place_token(const Step& s, const Layer& layer, int64_t index, int64_t row,
                        const float* angles) {
    const Plan& p = s.plan;
    const int64_t dim = p.head_dim, width = (p.heads + 2 * p.kv_heads) * dim;
    float* query = s.projected + row * width;
    float* key = query + p.heads * dim;
    float* value = key + p.kv_heads * dim;
    const float *query_norm = vector_at(s, layer.query_norm), *key_norm = vector_at(s, layer.key_norm);
    const int64_t* table = s.cache_table + 3 * index;
    for (int64_t h = 0; h < p.heads; h++) {
        float* head = query + h * dim;
        if (query_norm) norm_row(head, query_norm, dim, (float)p.epsilon, head);
        rotate(head, angles, dim, p.rotary_half);
        for (int64_t d = 0; d < dim; d += 16)
            store_part(head + d, load_part(head + d, dim - d) * splat((float)p.score_scale), dim - d);
    }
    for (int64_t h = 0; h < p.kv_heads; h++) {
        float* head = key + h * dim;
        if (key_norm) norm_row(head, key_norm, dim, (float)p.epsilon, head);
        rotate(head, angles, dim, p.rotary_half);
        const int64_t at =
            ((s.slot_of[row] * p.kv_heads + h) * table[2] + s.positions[row] % table[2]) * dim;
        write_cache_row(s.cache + table[0], at, head, dim, s.cache_bfloat);
        write_cache_row(s.cache + table[1], at, value + h * dim, dim, s.cache_bfloat);
    }
}

// ---------------------------------------------------------------------------- attention
inline int64_t part_count(int64_t position, int64_t window) {
    return position / kDecodeBlock - first_position(position, window) / kDecodeBlock + 1;
}

template <bool bfloat>
inline void run_unit(const Step& s, const Layer& layer, int64_t index, const Unit& unit) {
    const Plan& p = s.plan;
    const int64_t dim = p.head_dim, group = p.heads / p.kv_heads;
    const int64_t width = s.query_stride;
    const int64_t* table = s.cache_table + 3 * index;
    const Run& run = s.runs[unit.run];
    const int64_t head_bytes = table[2] * dim * (bfloat ? 2 : 4);
    const int64_t offset = (run.slot * p.kv_heads + unit.kv_head) * head_bytes;
    const uint8_t *keys = s.cache + table[0] + offset, *values = s.cache + table[1] + offset;
    const float* query = s.projected + unit.row * width + unit.kv_head * group * dim;
    if (unit.part) {
        decode_unit<bfloat>(query, group, dim, keys, values, table[2], unit.begin, unit.end,
                            unit.part);
    } else {
        auto* scratch = (ChunkScratch*)trimtab::scratch(sizeof(ChunkScratch), 1);
        if (!scratch) return;  // start_step has asked for this memory on the calling thread
        chunk_unit<bfloat>(query, width, unit.end - unit.begin, run.position + unit.begin, group,
                           dim, keys, values, table[2], layer.window,
                           s.attended + unit.row * p.heads * dim + unit.kv_head * group * dim,
                           p.heads * dim, scratch);
    }
}

inline void attend(const Step& s, const Layer& layer, int64_t index) {
    const Plan& p = s.plan;
    const int64_t dim = p.head_dim, group = p.heads / p.kv_heads, stride = group * (dim + 2);
    int64_t count = 0, visited = 0;
    float* part = s.parts;
    for (int64_t i = 0; i < s.run_count; i++) {
        const Run& run = s.runs[i];
        if (run.count >= kChunkFrom && group <= kChunkRows) {
            const int64_t tokens = larger(1, kChunkRows / group);
            // Late tokens see more: start with them, so that the last unit is a short one.
            for (int64_t t = (run.count - 1) / tokens * tokens; t >= 0; t -= tokens)
                for (int64_t h = 0; h < p.kv_heads; h++)
                    s.units[count++] = {(int32_t)i, (int32_t)h, run.first + t, t,
                                        smaller(run.count, t + tokens), nullptr};
            visited += run.count * 64;
            continue;
        }
        for (int64_t t = 0; t < run.count; t++)
            for (int64_t h = 0; h < p.kv_heads; h++) {
                const int64_t position = run.position + t;
                const int64_t first = first_position(position, layer.window);
                for (int64_t b = first / kDecodeBlock; b <= position / kDecodeBlock; b++) {
                    s.units[count++] = {(int32_t)i, (int32_t)h, run.first + t,
                                        larger(first, b * kDecodeBlock),
                                        smaller(position + 1, (b + 1) * kDecodeBlock), part};
                    part += stride;
                }
                visited += position + 1 - first;
            }
    }
    auto body = [&](int64_t u) {
        if (s.cache_bfloat) {
            run_unit<true>(s, layer, index, s.units[u]);
        } else {
            run_unit<false>(s, layer, index, s.units[u]);
        }
    };
    // Waking a thread costs as much as a few hundred positions.
    if (visited * group < 512) {
        for (int64_t u = 0; u < count; u++) body(u);
    } else {
        parallel(count, body);
    }
    // Join the parts of each token and head, in order of positions.
    for (int64_t u = 0; u < count;) {
        const Unit& unit = s.units[u];
        if (!unit.part) {
            u++;
            continue;
        }
        int64_t same = u + 1;
        while (same < count && s.units[same].part && s.units[same].row == unit.row &&
               s.units[same].kv_head == unit.kv_head)
            same++;
        for (int64_t g = 0; g < group; g++)
            combine_parts(unit.part + g * (dim + 2), same - u, stride, dim,
                          s.attended + (unit.row * p.heads + unit.kv_head * group + g) * dim);
        u = same;
    }
}

// ---------------------------------------------------------------------------- layers
inline void run_layer(const Step& s, int64_t index) {
    const Plan& p = s.plan;
    const Layer& layer = s.layers[index];
    const int64_t rows = s.rows, dim = p.head_dim, width = (p.heads + 2 * p.kv_heads) * dim;

    const int input_forms = activation_form((int)layer.query.kind) |
                            activation_form((int)layer.key.kind) |
                            activation_form((int)layer.value.kind);
    Activations x = prepare(s, s.x, rows, p.hidden, vector_at(s, layer.attention_norm), input_forms,
                            s.narrow, s.normed);
    const Matrix* projections[] = {&layer.query, &layer.key, &layer.value};
    const int64_t starts[] = {0, p.heads * dim, (p.heads + p.kv_heads) * dim};
    multiply_many(s, projections, 3, x, rows,
                  [&](int i, int64_t row, int64_t strip, F16 v) TRIMTAB_LAMBDA {
                      store_part(s.projected + row * width + starts[i] + 16 * strip, v,
                                 projections[i]->rows - 16 * strip);
                  });

    const float* angles = nullptr;
    for (int i = 0; i < kMaxFrequencyTables; i++)
        if (s.angle_key[i] == layer.frequencies) angles = s.angles[i];
    for_rows(rows, [&](int64_t r) { place_token(s, layer, index, r, angles + r * dim); });
    attend(s, layer, index);

    x = prepare(s, s.attended, rows, p.heads * dim, vector_at(s, layer.attention_sub_norm),
                activation_form((int)layer.output.kind), s.narrow, s.normed);
    project_back(s, layer.output, x, rows, layer.post_attention_norm);

    x = prepare(s, s.x, rows, p.hidden, vector_at(s, layer.feed_forward_norm),
                activation_form((int)layer.gate.kind) | activation_form((int)layer.up.kind),
                s.narrow, s.normed);
    const int down_form = activation_form((int)layer.down.kind);
    const bool to_blocks = down_form == kBlockForm && layer.feed_forward_sub_norm < 0;
    gated_product(s, layer, x, rows, to_blocks);
    if (to_blocks) {
        x = s.wide;
        x.columns = p.feed_forward;
    } else {
        x = prepare(s, s.product, rows, p.feed_forward, vector_at(s, layer.feed_forward_sub_norm),
                    down_form, s.wide, s.product);
    }
    project_back(s, layer.down, x, rows, layer.post_feed_forward_norm);
}

// ---------------------------------------------------------------------------- checks, memory
inline bool matrix_fits(const Matrix& m, int64_t bytes, int64_t rows, int64_t columns) {
    if (m.kind < 0 || m.kind >= kKinds || m.rows != rows || m.columns != columns) return false;
    if (m.kind > kF16 && columns % 32) return false;
    const int64_t need = ceil_div(rows, 16) * strip_bytes((int)m.kind, columns);
    if (m.offset < 0 || m.offset % 64 || m.offset > bytes - need) return false;
    return m.bias < 0 || m.bias <= bytes - rows * 4;
}
inline bool vector_fits(int64_t offset, int64_t bytes, int64_t size, bool required) {
    return offset < 0 ? !required : offset % 4 == 0 && offset <= bytes - size * 4;
}

inline const char* check_plan(const Step& s, int64_t bytes) {
    const Plan& p = s.plan;
    const int64_t width = p.heads * p.head_dim, kv = p.kv_heads * p.head_dim;
    if (p.hidden < 1 || p.feed_forward < 1 || p.heads < 1 || p.kv_heads < 1 || p.head_dim < 2 ||
        p.vocabulary < 1 || p.heads % p.kv_heads || p.head_dim % 2 || p.head_dim > kMaxHeadDim ||
        p.heads / p.kv_heads > kChunkRows)
        return "decoder_step cannot run a model of these sizes";
    bool good = matrix_fits(p.embedding, bytes, p.vocabulary, p.hidden) &&
                matrix_fits(p.head, bytes, p.vocabulary, p.hidden) &&
                vector_fits(p.final_norm, bytes, p.hidden, true);
    for (int64_t i = 0; i < p.layers && good; i++) {
        const Layer& l = s.layers[i];
        good = matrix_fits(l.query, bytes, width, p.hidden) &&
               matrix_fits(l.key, bytes, kv, p.hidden) && matrix_fits(l.value, bytes, kv, p.hidden) &&
               matrix_fits(l.output, bytes, p.hidden, width) &&
               matrix_fits(l.gate, bytes, p.feed_forward, p.hidden) &&
               matrix_fits(l.up, bytes, p.feed_forward, p.hidden) &&
               matrix_fits(l.down, bytes, p.hidden, p.feed_forward) &&
               vector_fits(l.attention_norm, bytes, p.hidden, true) &&
               vector_fits(l.feed_forward_norm, bytes, p.hidden, true) &&
               vector_fits(l.query_norm, bytes, p.head_dim, false) &&
               vector_fits(l.key_norm, bytes, p.head_dim, false) &&
               vector_fits(l.attention_sub_norm, bytes, width, false) &&
               vector_fits(l.post_attention_norm, bytes, p.hidden, false) &&
               vector_fits(l.feed_forward_sub_norm, bytes, p.feed_forward, false) &&
               vector_fits(l.post_feed_forward_norm, bytes, p.hidden, false) &&
               vector_fits(l.frequencies, bytes, p.head_dim / 2, true);
        // int8 rows with one scale and with block scales share their memory.
        const int forms = activation_form((int)l.query.kind) | activation_form((int)l.key.kind) |
                          activation_form((int)l.value.kind);
        const int gates = activation_form((int)l.gate.kind) | activation_form((int)l.up.kind);
        constexpr int both = kBlockForm | kRowForm;
        if ((forms & both) == both || (gates & both) == both)
            return "decoder_step cannot mix ternary and block weights that read one input";
    }
    return good ? nullptr : "decoder_step was given a plan that does not fit its weights";
}

inline const char* find_runs(Step* s) {
    Run* runs = (Run*)trimtab::scratch((size_t)s->rows * sizeof(Run), 2);
    if (!runs) return "out of memory";
    s->runs = runs;
    s->run_count = 0;
    for (int64_t r = 0; r < s->rows; r++) {
        Run* last = s->run_count ? &runs[s->run_count - 1] : nullptr;
        if (last && last->slot == s->slot_of[r] &&
            last->position + last->count == s->positions[r]) {
            last->count++;
        } else {
            runs[s->run_count++] = {r, 1, s->slot_of[r], s->positions[r]};
        }
    }
    return nullptr;
}

inline const char* check_lengths(const Step& s) {
    for (int64_t i = 0; i < s.plan.layers; i++) {
        const int64_t window = s.layers[i].window, rows = s.cache_table[3 * i + 2];
        for (int64_t j = 0; j < s.run_count; j++) {
            const int64_t last = s.runs[j].position + s.runs[j].count - 1;
            if (last < rows) continue;
            if (window <= 0) return "a position is past the end of the cache; make it larger";
            if (rows < window + s.runs[j].count - 1)
                return "the ring of a windowed layer is too short for so many tokens at once";
        }
    }
    return nullptr;
}

// Most parts (of single tokens) and units (of chunks) that a layer's attention can have; asks for
// the scratch memory of the latter.
inline const char* count_work(const Step& s, int64_t* parts, int64_t* units) {
    *parts = *units = 0;
    for (int64_t j = 0; j < s.run_count; j++)
        if (s.runs[j].count < kChunkFrom) {
            for (int64_t t = 0; t < s.runs[j].count; t++)
                *parts += s.plan.kv_heads * part_count(s.runs[j].position + t, 0);
        } else {
            *units += s.runs[j].count * s.plan.kv_heads;
            if (!trimtab::scratch(sizeof(ChunkScratch), 1)) return "out of memory";
        }
    return nullptr;
}

inline const char* check_rows(const Step& s) {
    for (int64_t r = 0; r < s.rows; r++) {
        if (s.tokens[r] < 0 || s.tokens[r] >= s.plan.vocabulary)
            return "a token id is outside the vocabulary";
        if (s.slot_of[r] < 0 || s.slot_of[r] >= s.slots) return "a slot is outside the cache";
        if (s.positions[r] < 0) return "a position is negative";
    }
    return check_lengths(s);
}

struct Carver {
    uint8_t* base;
    int64_t used;
    void* take(int64_t bytes) {
        void* at = base ? base + used : nullptr;
        used += round_up(bytes, 64) + 64;
        return at;
    }
};

inline Activations take_activations(Carver& c, int64_t rows, int64_t columns) {
    Activations a = {};
    a.columns = columns;
    a.codes = (int8_t*)c.take(rows * columns);
    a.sums = (BlockSums*)c.take(rows * (columns / 32 + 1) * (int64_t)sizeof(BlockSums));
    a.bfloats = (uint16_t*)c.take(rows * (columns + 1) * 2);
    return a;
}

inline void carve(Step* s, Carver& c, int64_t units, int64_t parts) {
    const Plan& p = s->plan;
    const int64_t rows = s->rows, heads = p.heads * p.head_dim;
    const int64_t narrow = larger(p.hidden, heads);
    s->x = (float*)c.take(rows * p.hidden * 4);
    s->normed = (float*)c.take(rows * narrow * 4);
    s->projected = (float*)c.take(rows * (heads + 2 * p.kv_heads * p.head_dim) * 4);
    s->attended = (float*)c.take(rows * heads * 4);
    s->product = (float*)c.take(rows * p.feed_forward * 4);
    s->delta = (float*)c.take(rows * p.hidden * 4);
    for (int i = 0; i < kMaxFrequencyTables; i++)
        if (s->angle_key[i] >= 0) s->angles[i] = (float*)c.take(rows * p.head_dim * 4);
    s->narrow = take_activations(c, rows, narrow);
    s->wide = take_activations(c, rows, p.feed_forward);
    s->parts = (float*)c.take(parts * (p.heads / p.kv_heads) * (p.head_dim + 2) * 4);
    s->units = (Unit*)c.take(units * (int64_t)sizeof(Unit));
}

// Arguments: weights u8, plan u8, cache u8, cache table (int64 [layers, 3] as u8), tokens, slots, positions
// i32 [rows] (, outputs i32 [count]). Attributes: slots, cache_bfloat.
inline const char* start_step(const Call& call, Step* s) {
    if (call.argument_count < 7) return "decoder_step takes at least 7 arrays";
    const Buffer* a = call.arguments;
    s->weights = (const uint8_t*)a[0].data;
    if (elements(a[1]) < (int64_t)sizeof(Plan)) return "the plan is too short";
    memcpy(&s->plan, a[1].data, sizeof(Plan));
    const Plan& p = s->plan;
    if (p.magic != kPlanMagic || p.layers < 0 ||
        elements(a[1]) != (int64_t)sizeof(Plan) + p.layers * (int64_t)sizeof(Layer))
        return "the plan was written by another version";
    s->layers = (const Layer*)((const uint8_t*)a[1].data + sizeof(Plan));
    s->cache = (uint8_t*)a[2].data;
    s->query_stride = (p.heads + 2 * p.kv_heads) * p.head_dim;
    s->cache_table = (const int64_t*)a[3].data;
    if (a[3].type != DataType::uint8 || elements(a[3]) != 24 * p.layers)
        return "the cache table needs 3 numbers a layer";
    s->slots = integer_attribute(call, "slots", 1);
    s->cache_bfloat = integer_attribute(call, "cache_bfloat", 1) != 0;
    s->rows = elements(a[4]);
    if (elements(a[5]) != s->rows || elements(a[6]) != s->rows)
        return "tokens, slots and positions must have one length";
    s->tokens = (const int32_t*)a[4].data;
    s->slot_of = (const int32_t*)a[5].data;
    s->positions = (const int32_t*)a[6].data;
    if (const char* problem = check_plan(*s, elements(a[0]))) return problem;
    const int64_t element = s->cache_bfloat ? 2 : 4;
    for (int64_t i = 0; i < p.layers; i++) {
        const int64_t* t = s->cache_table + 3 * i;
        const int64_t bytes = s->slots * p.kv_heads * t[2] * p.head_dim * element;
        if (t[2] < 1 || t[0] < 0 || t[1] < 0 || t[0] > elements(a[2]) - bytes ||
            t[1] > elements(a[2]) - bytes)
            return "the cache table does not fit the cache";
    }
    if (s->rows == 0) return nullptr;

    if (const char* problem = find_runs(s)) return problem;
    if (const char* problem = check_rows(*s)) return problem;

    for (int i = 0; i < kMaxFrequencyTables; i++) s->angle_key[i] = -1;
    for (int64_t l = 0; l < p.layers; l++)
        for (int i = 0; i < kMaxFrequencyTables; i++) {
            if (s->angle_key[i] == s->layers[l].frequencies) break;
            if (s->angle_key[i] < 0) {
                s->angle_key[i] = s->layers[l].frequencies;
                break;
            }
            if (i == kMaxFrequencyTables - 1) return "a model may have 4 rotary tables at most";
        }
    int64_t parts, units;
    if (const char* problem = count_work(*s, &parts, &units)) return problem;
    Carver size = {nullptr, 0};
    carve(s, size, units + parts, parts);
    Carver memory = {(uint8_t*)trimtab::scratch((size_t)size.used, 0), 0};
    if (!memory.base) return "out of memory";
    carve(s, memory, units + parts, parts);
    return nullptr;
}

inline void run_layers(const Step& s) {
    const Plan& p = s.plan;
    for_rows(s.rows, [&](int64_t r) {
        float* row = s.x + r * p.hidden;
        unpack_matrix_row((int)p.embedding.kind, s.weights + p.embedding.offset, p.hidden,
                          s.tokens[r], row);
        if (p.embedding_scale != 1.0)
            for (int64_t i = 0; i < p.hidden; i++) row[i] *= (float)p.embedding_scale;
        for (int i = 0; i < kMaxFrequencyTables; i++)
            if (s.angle_key[i] >= 0)
                fill_angles(vector_at(s, s.angle_key[i]), p.head_dim / 2, s.positions[r],
                            s.angles[i] + r * p.head_dim);
    });
    for (int64_t l = 0; l < p.layers; l++) run_layer(s, l);
}

// Under JAX the cache is a result too, which XLA gives the argument's memory if it can.
inline const char* own_cache(const Call& call, Step* s) {
    if (call.result_count == 1) return nullptr;
    const Buffer &given = call.arguments[2], &kept = call.results[0];
    if (elements(given) != elements(kept)) return "the new cache has the wrong size";
    if (kept.data != given.data) memcpy(kept.data, given.data, (size_t)elements(given));
    s->cache = (uint8_t*)kept.data;
    return nullptr;
}

// Results: (the cache u8 under JAX,) logits f32 [outputs, vocabulary].
const char* decoder_step(const Call& call) {
    Step s = {};
    if (call.argument_count != 8 || call.result_count < 1 || call.result_count > 2)
        return "decoder_step takes 8 arrays and fills the logits";
    if (const char* problem = start_step(call, &s)) return problem;
    if (const char* problem = own_cache(call, &s)) return problem;
    const Plan& p = s.plan;
    const int32_t* outputs = (const int32_t*)call.arguments[7].data;
    const int64_t count = elements(call.arguments[7]);
    const Buffer& result = call.results[call.result_count - 1];
    if (elements(result) != count * p.vocabulary) return "the logits have the wrong shape";
    for (int64_t i = 0; i < count; i++)
        if (outputs[i] < 0 || outputs[i] >= s.rows) return "an output index is outside the rows";
    if (s.rows == 0) return nullptr;
    run_layers(s);
    if (count == 0) return nullptr;
    float* chosen = s.delta;
    // Outputs may repeat rows, so there can be more of them than rows; they go in slices.
    float* logits = (float*)result.data;
    const Matrix* head[] = {&p.head};
    const float* weight = vector_at(s, p.final_norm);
    const F16 logit_scale = splat((float)p.logit_scale);
    for (int64_t first = 0; first < count; first += s.rows) {
        const int64_t slice = smaller(s.rows, count - first);
        for (int64_t i = 0; i < slice; i++)
            memcpy(chosen + i * p.hidden, s.x + outputs[first + i] * p.hidden, (size_t)p.hidden * 4);
        Activations x = prepare(s, chosen, slice, p.hidden, weight,
                                activation_form((int)p.head.kind), s.narrow, s.normed);
        multiply_many(s, head, 1, x, slice,
                      [&](int, int64_t row, int64_t strip, F16 v) TRIMTAB_LAMBDA {
                          store_part(logits + (first + row) * p.vocabulary + 16 * strip,
                                     v * logit_scale, p.vocabulary - 16 * strip);
                      });
    }
    return nullptr;
}

// Result: the final norm's output of every row, f32 [rows, hidden].
const char* decoder_hidden(const Call& call) {
    Step s = {};
    if (call.argument_count != 7 || call.result_count < 1 || call.result_count > 2)
        return "decoder_hidden takes 7 arrays and fills the hidden states";
    if (const char* problem = start_step(call, &s)) return problem;
    if (const char* problem = own_cache(call, &s)) return problem;
    const Buffer& result = call.results[call.result_count - 1];
    if (elements(result) != s.rows * s.plan.hidden) return "the hidden states have the wrong shape";
    if (s.rows == 0) return nullptr;
    run_layers(s);
    const float* weight = vector_at(s, s.plan.final_norm);
    for_rows(s.rows, [&](int64_t r) {
        norm_row(s.x + r * s.plan.hidden, weight, s.plan.hidden, (float)s.plan.epsilon,
                 (float*)result.data + r * s.plan.hidden);
    });
    return nullptr;
}

// Arguments: queries f32 [tokens, heads, dim], keys and values [slots, kv_heads, rows, dim] (both
// f32 or bfloat16), slots i32 [tokens], positions i32 [tokens]. Result: f32 like the queries.
// Attributes: scale, window (0: none). The cache already holds the tokens' own keys.
const char* cached_attention(const Call& call) {
    if (call.argument_count != 5 || call.result_count != 1)
        return "cached_attention takes 5 arrays and fills the outputs";
    const Buffer *a = call.arguments, &keys = a[1];
    if (a[0].rank != 3 || keys.rank != 4 || a[2].rank != 4 || a[0].type != DataType::float32 ||
        keys.type != a[2].type ||
        (keys.type != DataType::float32 && keys.type != DataType::bfloat16))
        return "cached_attention takes float32 queries and a float32 or bfloat16 cache";
    for (int axis = 0; axis < 4; axis++)
        if (keys.dims[axis] != a[2].dims[axis]) return "keys and values differ in shape";
    Step s = {};
    Plan& p = s.plan;
    p.layers = 1;
    p.vocabulary = 1;
    p.heads = a[0].dims[1], p.head_dim = a[0].dims[2], p.kv_heads = keys.dims[1];
    if (p.kv_heads < 1 || p.heads % p.kv_heads || keys.dims[3] != p.head_dim || p.head_dim < 1 ||
        p.head_dim > kMaxHeadDim || p.heads / p.kv_heads > kChunkRows)
        return "cached_attention cannot run these head counts and widths";
    s.rows = a[0].dims[0];
    s.slots = keys.dims[0];
    if (elements(a[3]) != s.rows || elements(a[4]) != s.rows)
        return "slots and positions must be as many as queries";
    if (s.rows == 0) return nullptr;
    s.cache_bfloat = keys.type == DataType::bfloat16;
    s.cache = (uint8_t*)keys.data;
    const int64_t table[3] = {0, (uint8_t*)a[2].data - s.cache, keys.dims[2]};
    s.cache_table = table;
    s.slot_of = (const int32_t*)a[3].data;
    s.positions = (const int32_t*)a[4].data;
    Layer layer = {};
    layer.window = integer_attribute(call, "window", 0);
    s.layers = &layer;
    if (const char* problem = find_runs(&s)) return problem;
    for (int64_t r = 0; r < s.rows; r++)
        if (s.slot_of[r] < 0 || s.slot_of[r] >= s.slots || s.positions[r] < 0)
            return "a slot or position is outside the cache";
    if (const char* problem = check_lengths(s)) return problem;
    int64_t parts, units;
    if (const char* problem = count_work(s, &parts, &units)) return problem;
    const int64_t width = p.heads * p.head_dim;
    s.query_stride = width;
    Carver size = {nullptr, 0};
    for (Carver* c = &size;;) {
        s.projected = (float*)c->take(s.rows * width * 4);
        s.parts = (float*)c->take(parts * (p.heads / p.kv_heads) * (p.head_dim + 2) * 4);
        s.units = (Unit*)c->take((units + parts) * (int64_t)sizeof(Unit));
        if (c->base) break;
        const int64_t bytes = c->used;
        *c = {(uint8_t*)trimtab::scratch((size_t)bytes, 0), 0};
        if (!c->base) return "out of memory";
    }
    const float scale = (float)real_attribute(call, "scale", 1.0);
    for (int64_t i = 0; i < s.rows * width; i++) s.projected[i] = ((float*)a[0].data)[i] * scale;
    s.attended = (float*)call.results[0].data;
    attend(s, layer, 0);
    return nullptr;
}

}  // namespace

TRIMTAB_EXPORT({"pack_blocks", pack_blocks}, {"block_linear", block_linear},
               {"rms_block_linear", block_linear},
               {"decoder_step", decoder_step}, {"decoder_hidden", decoder_hidden},
               {"cached_attention", cached_attention})
