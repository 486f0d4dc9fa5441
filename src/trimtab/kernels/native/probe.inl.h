// What this machine can do at most: bytes a second from memory and operations a second by type.
// Python takes the time; these only do the work, spread over the pool.
#include "simd.h"

namespace {

typedef uint64_t Chunk512 __attribute__((vector_size(64), aligned(8), may_alias));

constexpr int64_t kSlice = int64_t{1} << 20;

// Argument: bytes. Result: uint64 of one element per slice of 1 MiB, so that nothing is dead.
const char* probe_read(const Call& call) {
  const Buffer &source = call.arguments[0], &sums = call.results[0];
  const int64_t bytes = elements(source), slices = bytes / kSlice;
  if (elements(sums) < slices) return "probe_read needs a result for each MiB";
  const char* data = static_cast<const char*>(source.data);
  uint64_t* out = static_cast<uint64_t*>(sums.data);
  parallel(slices, [&](int64_t slice) {
    // Two streams half a slice apart keep more lines in flight than one.
    const Chunk512* a = reinterpret_cast<const Chunk512*>(data + slice * kSlice);
    const Chunk512* b = a + kSlice / 128;
    Chunk512 w{}, x{}, y{}, z{};
    for (int64_t i = 0; i < kSlice / 128; i += 2) {
      __builtin_prefetch(a + i + 64);
      __builtin_prefetch(a + i + 65);
      __builtin_prefetch(b + i + 64);
      __builtin_prefetch(b + i + 65);
      w ^= a[i];
      x ^= a[i + 1];
      y ^= b[i];
      z ^= b[i + 1];
    }
    w ^= x ^ y ^ z;
    uint64_t total = 0;
    for (int lane = 0; lane < 8; ++lane) total ^= w[lane];
    out[slice] = total;
  });
  return nullptr;
}

// Argument and result: bytes; whole MiB are copied past the caches where that exists.
const char* probe_copy(const Call& call) {
  const Buffer &source = call.arguments[0], &target = call.results[0];
  if (elements(source) != elements(target)) return "probe_copy needs buffers of one size";
  const char* from = static_cast<const char*>(source.data);
  char* to = static_cast<char*>(target.data);
  parallel(elements(source) / kSlice, [&](int64_t slice) {
    const char* a = from + slice * kSlice;
    char* b = to + slice * kSlice;
#if TRIMTAB_ANY_AVX512
    if (reinterpret_cast<uintptr_t>(b) % 64 == 0) {
      for (int64_t i = 0; i < kSlice; i += 64)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(b + i), _mm512_loadu_si512(a + i));
      _mm_sfence();
      return;
    }
#elif TRIMTAB_AVX2
    if (reinterpret_cast<uintptr_t>(b) % 32 == 0) {
      for (int64_t i = 0; i < kSlice; i += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(b + i),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i)));
      _mm_sfence();
      return;
    }
#endif
    memcpy(b, a, kSlice);
  });
  return nullptr;
}

// Each loop below runs `rounds` rounds of independent multiply-adds in registers and returns a
// number that depends on all of them; `operations` is what one round counts, an addition and a
// multiplication apart. Empty assembly keeps plain vector code from being hoisted or summed up.
constexpr int kChains = 12;

struct Float32Rate {
  static constexpr int64_t operations() { return 2 * kChains * kLanes; }
  static float run(int64_t rounds, float seed) {
    Floats sums[kChains];
    for (int c = 0; c < kChains; ++c) sums[c] = all(seed + static_cast<float>(c));
    const Floats factor = all(0.5f * seed), offset = all(seed);
    for (int64_t i = 0; i < rounds; ++i)
      for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * factor + offset;
    Floats total{};
    for (int c = 0; c < kChains; ++c) total += sums[c];
    return sum_of_lanes(total);
  }
};

#if TRIMTAB_AVX512 || TRIMTAB_AMX

struct BFloat16Rate {
  static constexpr int64_t operations() { return 2 * kChains * 32; }
  static float run(int64_t rounds, float seed) {
    __m512 sums[kChains];
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_set1_ps(seed);
    const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(seed), _mm512_set1_ps(seed)), b = a;
    for (int64_t i = 0; i < rounds; ++i)
      for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbf16_ps(sums[c], a, b);
    Floats total{};
    for (int c = 0; c < kChains; ++c) total += (Floats)sums[c];
    return sum_of_lanes(total);
  }
};

struct Int8Rate {
  static constexpr int64_t operations() { return 2 * kChains * 64; }
  static float run(int64_t rounds, float seed) {
    __m512i sums[kChains];
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_set1_epi32(static_cast<int>(seed) + c);
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
    for (int64_t i = 0; i < rounds; ++i)
      for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbusd_epi32(sums[c], a, b);
    __m512i total = _mm512_setzero_si512();
    for (int c = 0; c < kChains; ++c) total = _mm512_add_epi32(total, sums[c]);
    return static_cast<float>(_mm512_reduce_add_epi32(total));
  }
};

#else

// Without dot instructions bfloat16 is widened in pairs and multiplied as float32.
struct BFloat16Rate {
  static constexpr int64_t operations() { return 2 * kChains * 2 * kLanes; }
  static float run(int64_t rounds, float seed) {
    Floats sums[kChains];
    for (int c = 0; c < kChains; ++c) sums[c] = all(seed);
    Words pairs = (Words)all(seed + 1.0f);
    const Floats factor = all(seed);
    for (int64_t i = 0; i < rounds; ++i)
      for (int c = 0; c < kChains; ++c) {
#if defined(__x86_64__)
        asm volatile("" : "+x"(pairs));
#endif
        sums[c] += (Floats)(pairs << 16) * factor;
        sums[c] += (Floats)(pairs & 0xFFFF0000u) * factor;
      }
    Floats total{};
    for (int c = 0; c < kChains; ++c) total += sums[c];
    return sum_of_lanes(total);
  }
};

#if TRIMTAB_AVX2
struct Int8Rate {
  static constexpr int64_t operations() { return 2 * kChains * 32; }
  static float run(int64_t rounds, float seed) {
    __m256i sums[kChains];
    for (int c = 0; c < kChains; ++c) sums[c] = _mm256_set1_epi32(static_cast<int>(seed) + c);
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-2);
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t i = 0; i < rounds; ++i)
      for (int c = 0; c < kChains; ++c) {
        asm volatile("" : "+x"(a), "+x"(b));
        const __m256i pairs = _mm256_maddubs_epi16(a, b);
        sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(pairs, ones));
      }
    __m256i total = _mm256_setzero_si256();
    for (int c = 0; c < kChains; ++c) total = _mm256_add_epi32(total, sums[c]);
    return static_cast<float>(_mm256_extract_epi32(total, 0));
  }
};
#else
struct Int8Rate {
  static constexpr int64_t operations() { return 2 * kChains * kLanes; }
  static float run(int64_t rounds, float seed) {
    Ints sums[kChains];
    for (int c = 0; c < kChains; ++c) sums[c] = all_ints(static_cast<int>(seed) + c);
    Ints a = all_ints(3), b = all_ints(-2);
    for (int64_t i = 0; i < rounds; ++i)
      for (int c = 0; c < kChains; ++c) {
#if defined(__x86_64__)
        asm volatile("" : "+x"(a), "+x"(b));
#endif
        sums[c] += a * b;
      }
    Ints total{};
    for (int c = 0; c < kChains; ++c) total += sums[c];
    return static_cast<float>(total[0]);
  }
};
#endif
#endif

#if TRIMTAB_AMX

// The compiler's tile intrinsics do not say that they read memory, so stores before them could be
// dropped: this makes those stores happen.
TRIMTAB_INLINE void written(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

// Four accumulator tiles, two of either operand, as in a matrix product; 1 KiB a tile.
TRIMTAB_INLINE void configure_tiles() {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes_per_row[tile] = 64;
    config.rows[tile] = 16;
  }
  written(&config);
  _tile_loadconfig(&config);
}

struct TileBFloat16Rate {
  static constexpr int64_t operations() { return 2 * 4 * 16 * 16 * 32; }
  static float run(int64_t rounds, float seed) {
    configure_tiles();
    alignas(64) float block[256];
    for (float& value : block) value = seed;
    written(block);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, block, 64);
    _tile_loadd(5, block, 64);
    _tile_loadd(6, block, 64);
    _tile_loadd(7, block, 64);
    for (int64_t i = 0; i < rounds; ++i) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, block, 64);
    _tile_release();
    return block[0];
  }
};

struct TileInt8Rate {
  static constexpr int64_t operations() { return 2 * 4 * 16 * 16 * 64; }
  static float run(int64_t rounds, float seed) {
    configure_tiles();
    alignas(64) int32_t block[256];
    for (int32_t& value : block) value = static_cast<int32_t>(seed) + 0x01020304;
    written(block);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, block, 64);
    _tile_loadd(5, block, 64);
    _tile_loadd(6, block, 64);
    _tile_loadd(7, block, 64);
    for (int64_t i = 0; i < rounds; ++i) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, block, 64);
    _tile_release();
    return static_cast<float>(block[0]);
  }
};

#else
using TileBFloat16Rate = BFloat16Rate;
using TileInt8Rate = Int8Rate;
#endif

template <typename Rate>
const char* measure(const Call& call) {
  const Buffer& out = call.results[0];
  if (out.type != DataType::float64 || elements(out) < 2) return "a rate needs float64[2]";
  double* results = static_cast<double*>(out.data);
  const int64_t rounds = integer_attribute(call, "rounds", 1000);
  const int threads = trimtab::thread_count();
  // Never true, but the compiler cannot know: the seed depends on the call.
  const float seed = static_cast<float>(integer_attribute(call, "seed", 1));
  float sums[1024] = {};
  parallel(threads, [&](int64_t thread) { sums[thread % 1024] = Rate::run(rounds, seed); });
  double total = 0;
  for (float sum : sums) total += sum;
  results[0] = static_cast<double>(Rate::operations()) * static_cast<double>(rounds) * threads;
  results[1] = total;
  return nullptr;
}

}  // namespace

// clang-format off
TRIMTAB_EXPORT({"probe_read", probe_read}, {"probe_copy", probe_copy},
               {"probe_float32", measure<Float32Rate>},
               {"probe_bfloat16", measure<TileBFloat16Rate>},
               {"probe_int8", measure<TileInt8Rate>})
// clang-format on
