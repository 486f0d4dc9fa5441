// Which function serves a kernel name at the active instruction-set level.
#pragma once

#include <stdint.h>

#include "cpu.h"
#include "kernel.h"

namespace trimtab {

// One kernel name with a function per level; a hole falls back to the next level below.
struct RegisteredKernel {
  const char* name;
  KernelFunction variants[kIsaCount];
};

int kernel_count();
const RegisteredKernel& registered_kernel(int index);

// -1 if no such kernel was built.
int find_kernel(const char* name);

// The level whose function would serve this kernel now; scalar always exists.
Isa serving_isa(int index);

// The caller has checked the level against `best_isa`, or emulates it (amx_emulator.h).
void set_active_isa(Isa isa);
Isa active_isa();

const char* invoke(int index, const Call& call);

}  // namespace trimtab
