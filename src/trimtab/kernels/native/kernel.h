// What a kernel sees: the call it serves, the shared pool, scratch memory, and how to export
// itself.
//
// Everything defined here has internal linkage (anonymous namespace), because this header is
// compiled once per instruction set: a shared inline function could be kept by the linker in its
// AVX-512 form and then crash an older CPU. Kernels therefore use no standard-library templates.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace trimtab {

// The numbers are ours; `ffi.cpp` and `module.cpp` translate.
enum class DataType : int32_t {
  invalid = 0,
  boolean = 1,
  int8 = 2,
  int16 = 3,
  int32 = 4,
  int64 = 5,
  uint8 = 6,
  uint16 = 7,
  uint32 = 8,
  uint64 = 9,
  float16 = 10,
  float32 = 11,
  float64 = 12,
  bfloat16 = 13,
};

// A dense row-major array.
struct Buffer {
  void* data;
  const int64_t* dims;
  int32_t rank;
  DataType type;
};

// A named number; floating attributes fill `real`, all others fill `integer`.
struct Attribute {
  const char* name;
  size_t name_length;
  int64_t integer;
  double real;
};

struct Call {
  const Buffer* arguments;
  const Buffer* results;
  const Attribute* attributes;
  int32_t argument_count;
  int32_t result_count;
  int32_t attribute_count;
};

// A kernel returns nullptr, or a sentence that says what was wrong with the call.
using KernelFunction = const char* (*)(const Call&);

struct KernelEntry {
  const char* name;
  KernelFunction function;
};

struct KernelTable {
  const KernelEntry* entries;
  int32_t count;
};

// Runs body(context, chunk) for chunk = 0 .. chunks-1 on the shared pool, the caller included.
// Results stay the same for every thread count as long as `chunks` depends on shapes alone and
// chunks write to places of their own. A nested or concurrent call runs on the calling thread.
void parallel_chunks(int64_t chunks, void (*body)(void* context, int64_t chunk), void* context);

int thread_count();

// Memory of the calling thread that stays valid until its next request for the same slot:
// 64-byte aligned, uninitialised, followed by at least 64 readable bytes. nullptr if there is no
// memory. Slots 0..3 belong to a kernel; a kernel that calls another must use slots of its own.
void* scratch(size_t bytes, int slot);

}  // namespace trimtab

namespace {

using trimtab::Attribute;
using trimtab::Buffer;
using trimtab::Call;
using trimtab::DataType;

#define TRIMTAB_INLINE inline __attribute__((always_inline))

template <typename Body>
void parallel(int64_t chunks, const Body& body) {
  trimtab::parallel_chunks(
      chunks, [](void* context, int64_t chunk) { (*static_cast<const Body*>(context))(chunk); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

TRIMTAB_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
TRIMTAB_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
TRIMTAB_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Number of elements of dims[first, last).
TRIMTAB_INLINE int64_t elements(const Buffer& buffer, int first, int last) {
  int64_t count = 1;
  for (int axis = first; axis < last; ++axis) count *= buffer.dims[axis];
  return count;
}
TRIMTAB_INLINE int64_t elements(const Buffer& buffer) { return elements(buffer, 0, buffer.rank); }

// The size of an axis counted from the end, as in Python's shape[-1].
TRIMTAB_INLINE int64_t size_from_end(const Buffer& buffer, int back) {
  return buffer.rank >= back ? buffer.dims[buffer.rank - back] : 1;
}

TRIMTAB_INLINE const Attribute* find_attribute(const Call& call, const char* name) {
  const size_t length = strlen(name);
  for (int i = 0; i < call.attribute_count; ++i) {
    const Attribute& attribute = call.attributes[i];
    if (attribute.name_length == length && memcmp(attribute.name, name, length) == 0)
      return &attribute;
  }
  return nullptr;
}

TRIMTAB_INLINE int64_t integer_attribute(const Call& call, const char* name, int64_t otherwise) {
  const Attribute* attribute = find_attribute(call, name);
  return attribute ? attribute->integer : otherwise;
}

TRIMTAB_INLINE double real_attribute(const Call& call, const char* name, double otherwise) {
  const Attribute* attribute = find_attribute(call, name);
  return attribute ? attribute->real : otherwise;
}

}  // namespace

#define TRIMTAB_PASTE_(a, b, c) a##b##c
#define TRIMTAB_PASTE(a, b, c) TRIMTAB_PASTE_(a, b, c)

// The last line of a kernel file: TRIMTAB_EXPORT({"name", function}, {"name_backward", function})
#define TRIMTAB_EXPORT(...)                                                                \
  namespace {                                                                              \
  const trimtab::KernelEntry exported_entries[] = {__VA_ARGS__};                           \
  }                                                                                        \
  extern "C" const trimtab::KernelTable TRIMTAB_PASTE(TRIMTAB_FILE, _on_, TRIMTAB_ISA);    \
  extern "C" const trimtab::KernelTable TRIMTAB_PASTE(TRIMTAB_FILE, _on_, TRIMTAB_ISA) = { \
      exported_entries,                                                                    \
      static_cast<int32_t>(sizeof(exported_entries) / sizeof(exported_entries[0]))};
