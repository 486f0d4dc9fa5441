// Semantics: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, "LDTILECFG",
// "TILELOADD", "TDPBF16PS", "TDPBSSD" and their relatives.
#include "amx_emulator.h"

#if defined(__x86_64__) && defined(__linux__)

#include <fenv.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <atomic>

namespace trimtab {
namespace {

struct Tile {
  uint8_t bytes[1024];
};

struct TileState {
  uint8_t config[64];
  Tile tiles[8];
  int row_bytes(int tile) const {
    uint16_t bytes;
    memcpy(&bytes, config + 16 + 2 * tile, 2);
    return bytes;
  }
  int rows(int tile) const { return config[48 + tile]; }
};

thread_local TileState state;

struct sigaction previous;

// Bits of a tile instruction: the VEX prefix of map 0F38, then opcode and operands.
struct Instruction {
  int opcode;
  int prefix;  // 0 none, 1 66, 2 F3, 3 F2
  int mod, reg, rm;
  int vvvv;
  uint64_t address;
  uint64_t stride;
  int length;
};

uint64_t register_value(const ucontext_t* context, int number) {
  static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(context->uc_mcontext.gregs[order[number]]);
}

template <typename T>
T read(const uint8_t* at) {
  T value;
  memcpy(&value, at, sizeof(T));
  return value;
}

// Memory operand: base + displacement apart from the index, which is a tile's row stride.
void decode_memory(const ucontext_t* context, const uint8_t* code, int* at, bool extend_index,
                   bool extend_base, Instruction* out) {
  int base = out->rm | (extend_base ? 8 : 0);
  out->stride = 0;
  bool has_base = true;
  if (out->rm == 4) {
    const int sib = code[(*at)++];
    const int index = (sib >> 3 & 7) | (extend_index ? 8 : 0);
    base = (sib & 7) | (extend_base ? 8 : 0);
    if (index != 4) out->stride = register_value(context, index) << (sib >> 6);
    has_base = !((sib & 7) == 5 && out->mod == 0);
  }
  const bool relative = out->rm == 5 && out->mod == 0;
  int64_t displacement = 0;
  if (out->mod == 1) {
    displacement = read<int8_t>(code + *at);
    *at += 1;
  } else if (out->mod == 2 || relative || !has_base) {
    displacement = read<int32_t>(code + *at);
    *at += 4;
  }
  out->address = static_cast<uint64_t>(displacement);
  if (relative)
    out->address += reinterpret_cast<uint64_t>(code + *at);
  else if (has_base)
    out->address += register_value(context, base);
}

bool decode(const ucontext_t* context, Instruction* out) {
  const auto* code = reinterpret_cast<const uint8_t*>(context->uc_mcontext.gregs[REG_RIP]);
  // Three-byte VEX; bits R, X, B are stored inverted; map 2, W = 0, 128-bit.
  if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || (code[2] & 0x84) != 0) return false;
  out->vvvv = (~code[2] >> 3) & 15;
  out->prefix = code[2] & 3;
  out->opcode = code[3];
  if (out->opcode != 0x49 && out->opcode != 0x4B && out->opcode != 0x5C && out->opcode != 0x5E)
    return false;
  const int modrm = code[4];
  out->mod = modrm >> 6;
  out->reg = modrm >> 3 & 7;
  out->rm = modrm & 7;
  int at = 5;
  if (out->mod != 3)
    decode_memory(context, code, &at, (code[1] & 0x40) == 0, (code[1] & 0x20) == 0, out);
  out->length = at;
  return true;
}

void load_tile(const Instruction& i) {
  Tile& tile = state.tiles[i.reg];
  memset(&tile, 0, sizeof(tile));
  for (int row = 0; row < state.rows(i.reg); ++row)
    memcpy(tile.bytes + 64 * row, reinterpret_cast<const void*>(i.address + row * i.stride),
           static_cast<size_t>(state.row_bytes(i.reg)));
}

void store_tile(const Instruction& i) {
  for (int row = 0; row < state.rows(i.reg); ++row)
    memcpy(reinterpret_cast<void*>(i.address + row * i.stride), state.tiles[i.reg].bytes + 64 * row,
           static_cast<size_t>(state.row_bytes(i.reg)));
}

float flushed(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7F800000u) == 0) bits &= 0x80000000u;
  memcpy(&value, &bits, 4);
  return value;
}

float widened(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return flushed(value);
}

float widened_float16(uint16_t half) {
  const uint32_t magnitude = (half & 0x7FFFu) << 13, sign = (half & 0x8000u) << 16;
  float value;
  memcpy(&value, &magnitude, 4);
  value *= 0x1p112f;
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (magnitude >= 0x0F800000u) bits = magnitude | 0x7F800000u;
  bits |= sign;
  memcpy(&value, &bits, 4);
  return value;
}

// dst += A B over pairs: even and odd products are accumulated apart and joined at the end.
void dot_halves(const Instruction& i, float (*widen)(uint16_t)) {
  const int rows = state.rows(i.reg), columns = state.row_bytes(i.reg) / 4;
  const int depth = state.row_bytes(i.rm) / 4;
  for (int m = 0; m < rows; ++m) {
    float sums[32] = {};
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < columns; ++n)
        for (int part = 0; part < 2; ++part) {
          const float a =
              widen(read<uint16_t>(state.tiles[i.rm].bytes + 64 * m + 4 * k + 2 * part));
          const float b =
              widen(read<uint16_t>(state.tiles[i.vvvv].bytes + 64 * k + 4 * n + 2 * part));
          float& sum = sums[2 * n + part];
          sum = flushed(__builtin_fmaf(a, b, sum));
        }
    for (int n = 0; n < columns; ++n) {
      uint8_t* at = state.tiles[i.reg].bytes + 64 * m + 4 * n;
      const float pair = flushed(sums[2 * n] + sums[2 * n + 1]);
      const float total = flushed(flushed(read<float>(at)) + pair);
      memcpy(at, &total, 4);
    }
  }
}

void dot_bytes(const Instruction& i, bool a_signed, bool b_signed) {
  const int rows = state.rows(i.reg), columns = state.row_bytes(i.reg) / 4;
  const int depth = state.row_bytes(i.rm) / 4;
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < columns; ++n) {
      uint8_t* at = state.tiles[i.reg].bytes + 64 * m + 4 * n;
      uint32_t sum = read<uint32_t>(at);
      for (int k = 0; k < depth; ++k)
        for (int part = 0; part < 4; ++part) {
          const uint8_t a = state.tiles[i.rm].bytes[64 * m + 4 * k + part];
          const uint8_t b = state.tiles[i.vvvv].bytes[64 * k + 4 * n + part];
          const int32_t x = a_signed ? static_cast<int8_t>(a) : a;
          const int32_t y = b_signed ? static_cast<int8_t>(b) : b;
          sum += static_cast<uint32_t>(x * y);
        }
      memcpy(at, &sum, 4);
    }
}

bool configure(const Instruction& i) {
  if (i.mod == 3) {
    if (i.prefix == 0) memset(&state, 0, sizeof(state));              // TILERELEASE
    if (i.prefix == 3) memset(&state.tiles[i.reg], 0, sizeof(Tile));  // TILEZERO
    return i.prefix == 0 || i.prefix == 3;
  }
  if (i.prefix == 0) {
    memset(&state, 0, sizeof(state));
    memcpy(state.config, reinterpret_cast<const void*>(i.address), 64);
  } else if (i.prefix == 1) {
    memcpy(reinterpret_cast<void*>(i.address), state.config, 64);
  } else {
    return false;
  }
  return true;
}

bool execute(const Instruction& i) {
  switch (i.opcode) {
    case 0x49: return configure(i);
    case 0x4B:
      if (i.mod == 3) return false;
      if (i.prefix == 2)
        store_tile(i);
      else
        load_tile(i);
      return true;
    case 0x5C:
      if (i.prefix == 2) dot_halves(i, widened);
      if (i.prefix == 3) dot_halves(i, widened_float16);
      return i.prefix >= 2;
    default: dot_bytes(i, i.prefix >= 2, i.prefix % 2 == 1); return true;
  }
}

void on_illegal_instruction(int signal, siginfo_t* info, void* raw) {
  auto* context = static_cast<ucontext_t*>(raw);
  Instruction instruction;
  if (decode(context, &instruction)) {
    // The instructions round to nearest whatever the thread's mode is.
    fenv_t saved;
    fegetenv(&saved);
    fesetenv(FE_DFL_ENV);
    const bool done = execute(instruction);
    fesetenv(&saved);
    if (done) {
      context->uc_mcontext.gregs[REG_RIP] += instruction.length;
      return;
    }
  }
  if ((previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction != nullptr) {
    previous.sa_sigaction(signal, info, raw);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else {
    sigaction(SIGILL, &previous, nullptr);  // Returning repeats the instruction, now fatally.
  }
}

}  // namespace

bool emulate_amx() {
  static const bool installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal_instruction;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGILL, &action, &previous) == 0;
  }();
  return installed;
}

}  // namespace trimtab

#else

namespace trimtab {
bool emulate_amx() { return false; }
}  // namespace trimtab

#endif
