// Compiled once per kernel file and instruction set; see kernels.cmake for the flags.
//   TRIMTAB_SOURCE  "normalization.inl.h"
//   TRIMTAB_FILE    normalization
//   TRIMTAB_ISA     avx512
// For `#if`, exactly one of TRIMTAB_SCALAR, TRIMTAB_AVX2, TRIMTAB_AVX512F, TRIMTAB_AVX512 and
// TRIMTAB_AMX is 1 and the others are 0.
#include "kernel.h"
#include TRIMTAB_SOURCE
