// The Python module trimtab.kernels._native.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <string>
#include <vector>

#include "amx_emulator.h"
#include "cpu.h"
#include "ffi.h"
#include "memory.h"
#include "pool.h"
#include "registry.h"

namespace nb = nanobind;

namespace trimtab {
namespace {

int kernel_index(const std::string& name) {
  const int index = find_kernel(name.c_str());
  if (index < 0) throw nb::key_error(name.c_str());
  return index;
}

nb::list kernel_names() {
  nb::list names;
  for (int i = 0; i < kernel_count(); ++i) names.append(registered_kernel(i).name);
  return names;
}

nb::object handler_capsule(const std::string& name) {
  void* address = ffi_handler(kernel_index(name));
  if (address == nullptr) throw nb::value_error("more kernels than handler slots in ffi.cpp");
  return nb::capsule(address);
}

nb::list variants(const std::string& name) {
  const RegisteredKernel& kernel = registered_kernel(kernel_index(name));
  nb::list names;
  for (int level = 0; level < kIsaCount; ++level)
    if (kernel.variants[level] != nullptr) names.append(isa_name(static_cast<Isa>(level)));
  return names;
}

Isa isa_from_name(const std::string& name) {
  for (int level = 0; level < kIsaCount; ++level)
    if (name == isa_name(static_cast<Isa>(level))) return static_cast<Isa>(level);
  throw nb::value_error("unknown instruction set");
}

nb::dict feature_dict() {
  nb::dict features;
  int count = 0;
  const Feature* list = cpu_features(&count);
  for (int i = 0; i < count; ++i) features[list[i].name] = list[i].present;
  return features;
}

// An array as the tuple (address, data type, dim, dim, ...).
struct Shapes {
  std::vector<Buffer> buffers;
  std::vector<int64_t> dims;
};

void read_arrays(nb::tuple arrays, Shapes* out) {
  size_t total = 0;
  for (nb::handle array : arrays) total += nb::len(array);
  out->dims.reserve(total);
  for (nb::handle item : arrays) {
    const nb::tuple array = nb::cast<nb::tuple>(item);
    const size_t first = out->dims.size();
    for (size_t i = 2; i < array.size(); ++i) out->dims.push_back(nb::cast<int64_t>(array[i]));
    out->buffers.push_back({reinterpret_cast<void*>(nb::cast<uintptr_t>(array[0])),
                            out->dims.data() + first, static_cast<int32_t>(array.size() - 2),
                            static_cast<DataType>(nb::cast<int>(array[1]))});
  }
}

void call_kernel(int index, nb::tuple arguments, nb::tuple results, nb::dict attributes) {
  if (index < 0 || index >= kernel_count()) throw nb::index_error("no such kernel");
  Shapes in, out;
  read_arrays(arguments, &in);
  read_arrays(results, &out);
  std::vector<std::string> names;
  std::vector<Attribute> numbers;
  names.reserve(nb::len(attributes));
  for (auto [key, value] : attributes) {
    names.push_back(nb::cast<std::string>(key));
    const bool real = PyFloat_Check(value.ptr());
    numbers.push_back({names.back().data(), names.back().size(),
                       real ? 0 : nb::cast<int64_t>(nb::int_(value)),
                       real ? nb::cast<double>(value) : 0.0});
  }
  const Call call = {in.buffers.data(),
                     out.buffers.data(),
                     numbers.data(),
                     static_cast<int32_t>(in.buffers.size()),
                     static_cast<int32_t>(out.buffers.size()),
                     static_cast<int32_t>(numbers.size())};
  const char* problem;
  {
    nb::gil_scoped_release release;
    problem = invoke(index, call);
  }
  if (problem != nullptr) throw nb::value_error(problem);
}

using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::shape<-1>>;

Bytes allocate(size_t bytes) {
  void* data = allocate_large(bytes);
  if (data == nullptr) throw std::bad_alloc();
  nb::capsule owner(data, [](void* address) noexcept { free_large(address); });
  const size_t shape[1] = {bytes};
  return Bytes(data, 1, shape, owner);
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native kernels; use them through trimtab.kernels.";
  m.def("kernel_names", &kernel_names);
  m.def("kernel_index", &kernel_index);
  m.def("handler", &handler_capsule, "XLA FFI handler of a kernel, as a capsule");
  m.def("variants", &variants, "Instruction sets that a kernel was compiled for");
  m.def("serving_isa", [](const std::string& name) {
    return std::string(isa_name(serving_isa(kernel_index(name))));
  });
  m.def("call", &call_kernel, nb::arg("index"), nb::arg("arguments"), nb::arg("results"),
        nb::arg("attributes"),
        "Run a kernel on raw memory: arrays are (address, data type, *dims)");
  m.def("cpu_features", &feature_dict);
  m.def("best_isa", [] { return std::string(isa_name(best_isa())); });
  m.def("active_isa", [] { return std::string(isa_name(active_isa())); });
  m.def("set_isa", [](const std::string& name) { set_active_isa(isa_from_name(name)); });
  m.def("emulate_amx", &emulate_amx, "Run AMX instructions by traps; False where that cannot be");
  m.def("usable_cores", &usable_cores);
  m.def("thread_count", &thread_count);
  m.def("set_thread_count", &set_thread_count, nb::arg("threads"));
  m.def("allocate", &allocate, nb::arg("bytes"),
        "Uninitialised bytes, 2 MiB-aligned on huge pages where large enough to profit");
}

}  // namespace trimtab
