// Memory for weights and workspaces: aligned, on huge pages, with a readable tail.
#pragma once

#include <stddef.h>

namespace trimtab {

// At least `bytes` plus 64 readable bytes; 64-byte aligned, and 2 MiB-aligned on transparent huge
// pages from 1 MiB on (one-thread streaming gains about half again). nullptr if there is none.
void* allocate_large(size_t bytes);
void free_large(void* data);

}  // namespace trimtab
