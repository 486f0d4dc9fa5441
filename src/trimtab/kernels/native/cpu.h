// What this processor can do, and the ladder of instruction-set levels built from that.
#pragma once

#include <stdint.h>

namespace trimtab {

// Ordered: a level includes all below it. Names are in `isa_name`.
enum class Isa : int32_t {
  scalar = 0,    // the compiler's baseline for the platform
  avx2 = 1,      // AVX2, FMA, F16C, BMI2
  avx512f = 2,   // AVX-512 F, CD, BW, DQ, VL
  avx512 = 3,    // and VNNI, VBMI, VBMI2, BITALG, VPOPCNTDQ, IFMA, BF16 (Zen 4, Sapphire Rapids)
  amx = 4,       // and AMX-TILE, AMX-BF16, AMX-INT8, with the system's permission
};
constexpr int kIsaCount = 5;

const char* isa_name(Isa isa);

// A CPU feature by its Linux name, whether the system lets us use it, and nothing else.
struct Feature {
  const char* name;
  bool present;
};
const Feature* cpu_features(int* count);

// The highest level that this processor and operating system support.
Isa best_isa();

// Asks the system for AMX tile state, once per process; false if it refuses.
bool request_amx_permission();

}  // namespace trimtab
