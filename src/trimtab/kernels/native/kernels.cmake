# The kernels. To add a family of them:
#   1. write native/FAMILY.inl.h: functions `const char* f(const Call&)` in an anonymous namespace,
#      closed by TRIMTAB_EXPORT({"name", f}, ...); activation.inl.h shows the form;
#   2. add a line `trimtab_kernel(FAMILY)` below, with ISAS if it has other variants than the default
#      and SUPPORT for plain sources compiled once (plans, tables: std:: is allowed there);
#   3. write FAMILY.py with the JAX reference and `kernel("name", reference=...)` for each entry, add
#      FAMILY to KERNEL_MODULES and its public functions to _EXPORTS in __init__.py (no module may
#      be named like a public function), and add cases to tests/kernels/.
# Levels: scalar (always), avx2, avx512f, avx512 (with VNNI, BF16, VBMI2), amx. A level that a
# kernel does not list is served by the next one below.
# Rebuild with `python scripts/build_native.py`; leave a broken family out with --without FAMILY.

set(TRIMTAB_DEFAULT_ISAS scalar avx2 avx512)

set(TRIMTAB_FLAGS_scalar "")
set(TRIMTAB_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpopcnt)
set(TRIMTAB_FLAGS_avx512f ${TRIMTAB_FLAGS_avx2} -mavx512f -mavx512cd -mavx512bw -mavx512dq
    -mavx512vl -mprefer-vector-width=512)
set(TRIMTAB_FLAGS_avx512 ${TRIMTAB_FLAGS_avx512f} -mavx512vnni -mavx512vbmi -mavx512vbmi2
    -mavx512ifma -mavx512bitalg -mavx512vpopcntdq -mavx512bf16)
set(TRIMTAB_FLAGS_amx ${TRIMTAB_FLAGS_avx512} -mamx-tile -mamx-bf16 -mamx-int8)

trimtab_kernel(probe ISAS scalar avx2 avx512 amx)
trimtab_kernel(normalization)
trimtab_kernel(activation)
trimtab_kernel(dense)
trimtab_kernel(optimizer)
trimtab_kernel(fourier SUPPORT fourier_plan.cpp)
trimtab_kernel(stream_worklist ISAS scalar avx2)
trimtab_kernel(stream_lanes)
trimtab_kernel(decoder)
