// The device that is simulated: what torch's C interface tells the bindings for CUDA, and does for them, so that they
// run as they are, on tensors of the CPU. The linker puts each __wrap_f in the place of f, which then is __real_f.
//
// To the bindings every tensor is on one GPU (gpus.h), and they may allocate memory there only. Fresh memory is NaN in
// every dtype, and a test can have there be none. The watch is told of every tensor whose memory a binding hands to its
// kernels, and of what torch writes.
#include <dlfcn.h>
#include <string.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

#include "bindings/branches.h"
#include "bindings/gpu_support.h"
#include "gpus.h"
#include "watch.h"

// Exported by the torch builds that contain MKL; null in the others.
extern "C" int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));

extern "C" {
AOTITorchError __real_aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t,
                                                   TorchLibraryHandle*);
AOTITorchError __real_aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t,
                                               AtenTensorHandle*);
AOTITorchError __real_aoti_torch_create_tensor_from_blob(void*, int64_t, const int64_t*, const int64_t*, int64_t,
                                                         int32_t, int32_t, int32_t, AtenTensorHandle*);
AOTITorchError __real_torch_get_const_data_ptr(AtenTensorHandle, const void**);
AOTITorchError __real_torch_get_mutable_data_ptr(AtenTensorHandle, void**);
AOTITorchError __real_aoti_torch_aten_fill__Scalar(AtenTensorHandle, double);
AOTITorchError __real_torch_call_dispatcher(const char*, const char*, StableIValue*, uint64_t);
void* __real_dlopen(const char*, int);
void* __real_dlsym(void*, const char*);
}

namespace {

// How many more calls of torch get memory; less than 0: all.
std::atomic<int> calls_with_memory = -1;
// Whether a call gets none: then torch has failed as it does where memory has run out.
bool is_out_of_memory() {
  if (calls_with_memory < 0 || calls_with_memory-- != 0) return false;
  const int64_t bytes = int64_t{1} << 60, stride = 1;
  AtenTensorHandle result = nullptr;
  __real_aoti_torch_empty_strided(1, &bytes, &stride, aoti_torch_dtype_uint8(), aoti_torch_device_type_cpu(), -1,
                                  &result);
  return true;
}

// The device that torch is to use in the place of one that a binding names.
int32_t device_behind(int32_t device_type, int32_t device_index) {
  if (device_type != aoti_torch_device_type_cuda() || device_index != simulator::gpu_of_tensors()) {
    throw std::runtime_error("a binding for CUDA uses device " + std::to_string(device_index) + " of type " +
                             std::to_string(device_type) + ", on which there is no tensor");
  }
  return aoti_torch_device_type_cpu();
}

int32_t current_stream(int32_t device_index, void** stream) {
  device_behind(aoti_torch_device_type_cuda(), device_index);
  *stream = simulator::current_stream(device_index);
  return AOTI_TORCH_SUCCESS;
}

// The memory that a tensor covers, from its first element to its last.
struct Extent {
  const void* data = nullptr;
  size_t bytes = 0;

  explicit Extent(AtenTensorHandle tensor) {
    int64_t dim = 0, *sizes = nullptr, *strides = nullptr, elements = 1;
    int32_t dtype = 0;
    TORCH_ERROR_CODE_CHECK(__real_torch_get_const_data_ptr(tensor, &data));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dim));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
    for (int64_t d = 0; d < dim; ++d) {
      if (sizes[d] == 0) return;
      elements += (sizes[d] - 1) * strides[d];
    }
    bytes = static_cast<size_t>(elements) * aoti_torch_dtype_element_size(dtype);
  }
};

void watch_tensor(AtenTensorHandle tensor) {
  if (!simulator::watching) return;
  const Extent extent(tensor);
  simulator::device_memory().add(extent.data, extent.bytes);
}

void watch_written(AtenTensorHandle tensor) {
  if (!simulator::watching) return;
  const Extent extent(tensor);
  simulator::device_memory().mark_written(extent.data, extent.bytes);
}

void spoil(AtenTensorHandle tensor) {
  const Extent extent(tensor);
  if (extent.bytes > 0) memset(const_cast<void*>(extent.data), 0xff, extent.bytes);
  if (simulator::watching) simulator::device_memory().add_fresh(extent.data, extent.bytes);
}

void check_product(std::initializer_list<AtenTensorHandle> operands) {
  if (!simulator::watching) return;
  for (AtenTensorHandle operand : operands) {
    const Extent extent(operand);
    if (extent.bytes == 0 || simulator::device_memory().has(extent.data, extent.bytes)) continue;
    throw std::runtime_error("a product of matrices reaches beyond the memory of its call");
  }
}

AtenTensorHandle tensor_in(StableIValue value) { return torch::stable::detail::to<AtenTensorHandle>(value); }

}  // namespace

extern "C" {

// What is registered for CUDA runs for the CPU.
AOTITorchError __wrap_aoti_torch_library_init_impl(const char* ns, const char* key, const char* file, uint32_t line,
                                                   TorchLibraryHandle* result) {
  return __real_aoti_torch_library_init_impl(ns, std::string_view(key) == "CUDA" ? "CPU" : key, file, line, result);
}

AOTITorchError __wrap_aoti_torch_get_device_type(AtenTensorHandle, int32_t* result) {
  *result = aoti_torch_device_type_cuda();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_aoti_torch_get_device_index(AtenTensorHandle, int32_t* result) {
  *result = simulator::gpu_of_tensors();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_aoti_torch_create_device_guard(int32_t device_index, DeviceGuardHandle* result) {
  device_behind(aoti_torch_device_type_cuda(), device_index);
  *result = reinterpret_cast<DeviceGuardHandle>(new int(simulator::current_gpu()));
  simulator::current_gpu() = device_index;
  return AOTI_TORCH_SUCCESS;
}

// The end of a call.
AOTITorchError __wrap_aoti_torch_delete_device_guard(DeviceGuardHandle guard) {
  int* before = reinterpret_cast<int*>(guard);
  simulator::current_gpu() = *before;
  delete before;
  simulator::device_memory().clear();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_torch_get_const_data_ptr(AtenTensorHandle tensor, const void** result) {
  watch_tensor(tensor);
  return __real_torch_get_const_data_ptr(tensor, result);
}

AOTITorchError __wrap_torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** result) {
  watch_tensor(tensor);
  return __real_torch_get_mutable_data_ptr(tensor, result);
}

AOTITorchError __wrap_aoti_torch_aten_fill__Scalar(AtenTensorHandle tensor, double value) {
  watch_written(tensor);
  return __real_aoti_torch_aten_fill__Scalar(tensor, value);
}

AOTITorchError __wrap_aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                               int32_t device_type, int32_t device_index, AtenTensorHandle* result) {
  if (is_out_of_memory()) return AOTI_TORCH_FAILURE;
  const int32_t error =
      __real_aoti_torch_empty_strided(dim, sizes, strides, dtype, device_behind(device_type, device_index), -1, result);
  if (error == AOTI_TORCH_SUCCESS) spoil(*result);
  return error;
}

AOTITorchError __wrap_aoti_torch_create_tensor_from_blob(void* data, int64_t dim, const int64_t* sizes,
                                                         const int64_t* strides, int64_t offset, int32_t dtype,
                                                         int32_t device_type, int32_t device_index,
                                                         AtenTensorHandle* result) {
  // Of the CPU's own memory, which is to be copied from.
  const bool is_host = device_type == aoti_torch_device_type_cpu();
  return __real_aoti_torch_create_tensor_from_blob(data, dim, sizes, strides, offset, dtype,
                                                   is_host ? device_type : device_behind(device_type, device_index), -1,
                                                   result);
}

// Products have the same bits with any number of threads, as on a GPU: MKL splits sums between threads.
AOTITorchError __wrap_torch_call_dispatcher(const char* op, const char* overload, StableIValue* stack,
                                            uint64_t version) {
  const std::string_view name(op);
  const bool adds = name == "charlm::multiply_add";
  const bool may_allocate = adds || name == "aten::mm" || name == "aten::sort" || name == "aten::empty_like";
  if (may_allocate && is_out_of_memory()) return AOTI_TORCH_FAILURE;
  if (name == "aten::mm" || adds) {
    const AtenTensorHandle out = tensor_in(stack[adds || std::string_view(overload) == "dtype_out" ? 3 : 2]);
    check_product({tensor_in(stack[0]), tensor_in(stack[1]), out, adds ? tensor_in(stack[2]) : out});
    watch_written(out);
  }
  const int threads = MKL_Set_Num_Threads_Local != nullptr ? MKL_Set_Num_Threads_Local(1) : 0;
  const AOTITorchError error = __real_torch_call_dispatcher(op, overload, stack, version);
  if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(threads);
  if (error != AOTI_TORCH_SUCCESS || adds) return error;
  name == "aten::empty_like" ? spoil(tensor_in(stack[0])) : watch_written(tensor_in(stack[0]));
  if (name == "aten::sort") watch_written(tensor_in(stack[1]));
  return error;
}

// Where bindings/cuda/device_call.cpp finds the stream: a torch without CUDA has no such library.
void* __wrap_dlopen(const char* name, int flags) {
  static char cuda;
  return std::string_view(name) == "libtorch_cuda.so" ? &cuda : __real_dlopen(name, flags);
}

void* __wrap_dlsym(void* library, const char* name) {
  const bool wanted = std::string_view(name) == "aoti_torch_get_current_cuda_stream";
  return wanted ? reinterpret_cast<void*>(&current_stream) : __real_dlsym(library, name);
}

// For Python: charlm._C knows only what its own copy of the bindings does.
__attribute__((visibility("default"))) const char* simulator_last_branch() { return charlm::last_branch(); }
// null: the kernels run there.
__attribute__((visibility("default"))) const char* simulator_why_no_kernels(int gpu) {
  thread_local std::string why;
  why = charlm::why_no_kernels(gpu).value_or("");
  return why.empty() ? nullptr : why.c_str();
}
__attribute__((visibility("default"))) bool simulator_trains_in_one_launch(int gpu, int64_t vocab_size,
                                                                           int64_t context_length,
                                                                           int64_t embedding_dim, int64_t hidden_dim,
                                                                           bool direct, bool is_float64) {
  return charlm::trains_in_one_launch(gpu, {vocab_size, context_length, embedding_dim, hidden_dim, direct}, is_float64);
}
// So many calls of torch get memory, and the next one gets none; -1: all do. Returns how many there still were.
__attribute__((visibility("default"))) int simulator_limit_memory(int calls) {
  return calls_with_memory.exchange(calls);
}

}  // extern "C"
