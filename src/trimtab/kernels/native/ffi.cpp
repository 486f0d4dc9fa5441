// Written against XLA's C interface: one header, no templates, and a call costs a few copies.
#include "ffi.h"

#include <utility>

#include "registry.h"
#include "xla/ffi/api/c_api.h"

namespace trimtab {
namespace {

constexpr int kMaximumBuffers = 24;
constexpr int kMaximumAttributes = 24;
constexpr int kMaximumHandlers = 256;

DataType data_type(XLA_FFI_DataType type) {
  switch (type) {
    case XLA_FFI_DataType_PRED: return DataType::boolean;
    case XLA_FFI_DataType_S8: return DataType::int8;
    case XLA_FFI_DataType_S16: return DataType::int16;
    case XLA_FFI_DataType_S32: return DataType::int32;
    case XLA_FFI_DataType_S64: return DataType::int64;
    case XLA_FFI_DataType_U8: return DataType::uint8;
    case XLA_FFI_DataType_U16: return DataType::uint16;
    case XLA_FFI_DataType_U32: return DataType::uint32;
    case XLA_FFI_DataType_U64: return DataType::uint64;
    case XLA_FFI_DataType_F16: return DataType::float16;
    case XLA_FFI_DataType_F32: return DataType::float32;
    case XLA_FFI_DataType_F64: return DataType::float64;
    case XLA_FFI_DataType_BF16: return DataType::bfloat16;
    default: return DataType::invalid;
  }
}

XLA_FFI_Error* failure(const XLA_FFI_Api* api, const char* message) {
  XLA_FFI_Error_Create_Args args = {};
  args.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
  args.message = message;
  args.errc = XLA_FFI_Error_Code_INVALID_ARGUMENT;
  return api->XLA_FFI_Error_Create(&args);
}

Buffer to_buffer(const void* raw) {
  const auto* buffer = static_cast<const XLA_FFI_Buffer*>(raw);
  return {buffer->data, buffer->dims, static_cast<int32_t>(buffer->rank), data_type(buffer->dtype)};
}

template <typename T>
T scalar(const XLA_FFI_Scalar* value) {
  T number;
  memcpy(&number, value->value, sizeof(T));
  return number;
}

bool to_attribute(const XLA_FFI_Attrs& attrs, int64_t index, Attribute* out) {
  if (attrs.types[index] != XLA_FFI_AttrType_SCALAR) return false;
  const auto* value = static_cast<const XLA_FFI_Scalar*>(attrs.attrs[index]);
  *out = {attrs.names[index]->ptr, attrs.names[index]->len, 0, 0.0};
  switch (value->dtype) {
    case XLA_FFI_DataType_PRED: out->integer = scalar<bool>(value); return true;
    case XLA_FFI_DataType_S32: out->integer = scalar<int32_t>(value); return true;
    case XLA_FFI_DataType_S64: out->integer = scalar<int64_t>(value); return true;
    case XLA_FFI_DataType_F32: out->real = scalar<float>(value); return true;
    case XLA_FFI_DataType_F64: out->real = scalar<double>(value); return true;
    default: return false;
  }
}

// XLA asks each handler once which version of the interface it was compiled with.
bool answer_metadata(XLA_FFI_CallFrame* frame) {
  XLA_FFI_Extension_Base* extension = frame->extension_start;
  if (extension == nullptr || extension->type != XLA_FFI_Extension_Metadata) return false;
  XLA_FFI_Metadata* metadata = reinterpret_cast<XLA_FFI_Metadata_Extension*>(extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return true;
}

XLA_FFI_Error* handle(int index, XLA_FFI_CallFrame* frame) {
  if (answer_metadata(frame)) return nullptr;
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE)
    return failure(frame->api, "trimtab kernels have an execute stage only");
  if (frame->args.size > kMaximumBuffers || frame->rets.size > kMaximumBuffers ||
      frame->attrs.size > kMaximumAttributes)
    return failure(frame->api, "too many arguments, results or attributes for a trimtab kernel");
  Buffer arguments[kMaximumBuffers], results[kMaximumBuffers];
  Attribute attributes[kMaximumAttributes];
  for (int64_t i = 0; i < frame->args.size; ++i) arguments[i] = to_buffer(frame->args.args[i]);
  for (int64_t i = 0; i < frame->rets.size; ++i) results[i] = to_buffer(frame->rets.rets[i]);
  for (int64_t i = 0; i < frame->attrs.size; ++i)
    if (!to_attribute(frame->attrs, i, &attributes[i]))
      return failure(frame->api, "trimtab kernels take only numbers as attributes");
  const Call call = {arguments,
                     results,
                     attributes,
                     static_cast<int32_t>(frame->args.size),
                     static_cast<int32_t>(frame->rets.size),
                     static_cast<int32_t>(frame->attrs.size)};
  const char* problem = invoke(index, call);
  return problem == nullptr ? nullptr : failure(frame->api, problem);
}

// XLA calls a bare function, so each kernel needs one that knows its own index.
template <int kIndex>
XLA_FFI_Error* handler(XLA_FFI_CallFrame* frame) {
  return handle(kIndex, frame);
}

template <int... kIndices>
XLA_FFI_Handler* nth_handler(int index, std::integer_sequence<int, kIndices...>) {
  static XLA_FFI_Handler* const handlers[] = {handler<kIndices>...};
  return handlers[index];
}

}  // namespace

void* ffi_handler(int index) {
  if (index < 0 || index >= kMaximumHandlers) return nullptr;
  return reinterpret_cast<void*>(
      nth_handler(index, std::make_integer_sequence<int, kMaximumHandlers>()));
}

}  // namespace trimtab
