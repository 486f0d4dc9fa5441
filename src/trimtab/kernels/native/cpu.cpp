#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace trimtab {
namespace {

enum Index {
  kAvx2,
  kFma,
  kF16c,
  kBmi2,
  kAvxVnni,
  kAvx512f,
  kAvx512cd,
  kAvx512bw,
  kAvx512dq,
  kAvx512vl,
  kAvx512ifma,
  kAvx512vbmi,
  kAvx512vbmi2,
  kAvx512vnni,
  kAvx512bitalg,
  kAvx512vpopcntdq,
  kAvx512bf16,
  kAvx512fp16,
  kAmxTile,
  kAmxBf16,
  kAmxInt8,
  kAmxFp16,
  kNeon,
  kFeatureCount,
};

struct Features {
  Feature list[kFeatureCount];
};

#if defined(__x86_64__)
struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

uint64_t saved_state_mask(const Registers& leaf1) {
  if ((leaf1.ecx >> 27 & 1) == 0) return 0;  // OSXSAVE
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}
#endif

Features detect() {
  Features f = {{{"avx2", false},          {"fma", false},
                 {"f16c", false},          {"bmi2", false},
                 {"avx_vnni", false},      {"avx512f", false},
                 {"avx512cd", false},      {"avx512bw", false},
                 {"avx512dq", false},      {"avx512vl", false},
                 {"avx512ifma", false},    {"avx512vbmi", false},
                 {"avx512_vbmi2", false},  {"avx512_vnni", false},
                 {"avx512_bitalg", false}, {"avx512_vpopcntdq", false},
                 {"avx512_bf16", false},   {"avx512_fp16", false},
                 {"amx_tile", false},      {"amx_bf16", false},
                 {"amx_int8", false},      {"amx_fp16", false},
                 {"neon", false}}};
  Feature* list = f.list;
#if defined(__x86_64__)
  const Registers leaf1 = cpuid(1, 0), leaf7 = cpuid(7, 0), leaf71 = cpuid(7, 1);
  const uint64_t saved = saved_state_mask(leaf1);
  const bool avx_state = (saved & 0x6) == 0x6;
  const bool avx512_state = (saved & 0xE6) == 0xE6;
  const bool tile_state = (saved & 0x60000) == 0x60000;
  auto bit = [](unsigned value, int index) { return (value >> index & 1) != 0; };
  list[kFma].present = avx_state && bit(leaf1.ecx, 12);
  list[kF16c].present = avx_state && bit(leaf1.ecx, 29);
  list[kAvx2].present = avx_state && bit(leaf7.ebx, 5);
  list[kBmi2].present = bit(leaf7.ebx, 8);
  list[kAvxVnni].present = avx_state && bit(leaf71.eax, 4);
  list[kAvx512f].present = avx512_state && bit(leaf7.ebx, 16);
  list[kAvx512dq].present = avx512_state && bit(leaf7.ebx, 17);
  list[kAvx512ifma].present = avx512_state && bit(leaf7.ebx, 21);
  list[kAvx512cd].present = avx512_state && bit(leaf7.ebx, 28);
  list[kAvx512bw].present = avx512_state && bit(leaf7.ebx, 30);
  list[kAvx512vl].present = avx512_state && bit(leaf7.ebx, 31);
  list[kAvx512vbmi].present = avx512_state && bit(leaf7.ecx, 1);
  list[kAvx512vbmi2].present = avx512_state && bit(leaf7.ecx, 6);
  list[kAvx512vnni].present = avx512_state && bit(leaf7.ecx, 11);
  list[kAvx512bitalg].present = avx512_state && bit(leaf7.ecx, 12);
  list[kAvx512vpopcntdq].present = avx512_state && bit(leaf7.ecx, 14);
  list[kAvx512bf16].present = avx512_state && bit(leaf71.eax, 5);
  list[kAvx512fp16].present = avx512_state && bit(leaf7.edx, 23);
  list[kAmxBf16].present = tile_state && bit(leaf7.edx, 22);
  list[kAmxTile].present = tile_state && bit(leaf7.edx, 24);
  list[kAmxInt8].present = tile_state && bit(leaf7.edx, 25);
  list[kAmxFp16].present = tile_state && bit(leaf71.eax, 21);
#elif defined(__aarch64__)
  list[kNeon].present = true;
#endif
  return f;
}

const Features& features() {
  static const Features detected = detect();
  return detected;
}

bool all_present(const int* first, const int* last) {
  for (; first != last; ++first)
    if (!features().list[*first].present) return false;
  return true;
}

}  // namespace

const char* isa_name(Isa isa) {
  static const char* const names[kIsaCount] = {"scalar", "avx2", "avx512f", "avx512", "amx"};
  return names[static_cast<int>(isa)];
}

const Feature* cpu_features(int* count) {
  *count = kFeatureCount;
  return features().list;
}

Isa best_isa() {
  static const int avx2[] = {kAvx2, kFma, kF16c, kBmi2};
  static const int avx512f[] = {kAvx512f, kAvx512cd, kAvx512bw, kAvx512dq, kAvx512vl};
  static const int avx512[] = {kAvx512vnni,   kAvx512vbmi,      kAvx512vbmi2, kAvx512ifma,
                               kAvx512bitalg, kAvx512vpopcntdq, kAvx512bf16};
  static const int amx[] = {kAmxTile, kAmxBf16, kAmxInt8};
  if (!all_present(avx2, avx2 + 4)) return Isa::scalar;
  if (!all_present(avx512f, avx512f + 5)) return Isa::avx2;
  if (!all_present(avx512, avx512 + 7)) return Isa::avx512f;
  if (!all_present(amx, amx + 3) || !request_amx_permission()) return Isa::avx512;
  return Isa::amx;
}

bool request_amx_permission() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kGetPermission = 0x1022, kTileData = 18;
  static const bool granted = [] {
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return false;
    unsigned long mask = 0;
    if (syscall(SYS_arch_prctl, kGetPermission, &mask) != 0) return false;
    return (mask >> kTileData & 1) != 0;
  }();
  return granted;
#else
  return false;
#endif
}

}  // namespace trimtab
