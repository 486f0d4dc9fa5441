#include "memory.h"

#include <stdint.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace trimtab {

void* allocate_large(size_t bytes) {
  constexpr size_t kHuge = size_t{1} << 21;
  if (bytes > SIZE_MAX - 2 * kHuge) return nullptr;
  const size_t wanted = bytes + 64;
  const bool large = wanted >= kHuge / 2;
  const size_t alignment = large ? kHuge : 64;
  const size_t rounded = (wanted + alignment - 1) / alignment * alignment;
  void* data = nullptr;
  if (posix_memalign(&data, alignment, rounded) != 0) return nullptr;
#if defined(__linux__)
  if (large) madvise(data, rounded, MADV_HUGEPAGE);  // Only advice: failing changes nothing.
#endif
  return data;
}

void free_large(void* data) { free(data); }

}  // namespace trimtab
