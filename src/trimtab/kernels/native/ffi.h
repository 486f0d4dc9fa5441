// Kernels as XLA FFI handlers for the CPU.
#pragma once

namespace trimtab {

// Address of the handler of kernel `index`, or nullptr if there are more kernels than slots.
void* ffi_handler(int index);

}  // namespace trimtab
