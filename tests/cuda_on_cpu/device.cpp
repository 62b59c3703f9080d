// The device of a rehearsal: what torch's C interface tells the bindings for CUDA, and does for them, so that they run
// as they are, on tensors of the CPU. The linker puts each __wrap_f in the place of f, which then is __real_f.
//
// To the bindings every tensor is on cuda:0, and they may allocate memory there only. Fresh memory is NaN in every
// dtype.
#include <dlfcn.h>
#include <string.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>
#include <string_view>

#include "bindings/branches.h"

// Exported by the torch builds that contain MKL; null in the others.
extern "C" int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));

namespace {

constexpr int32_t kIndex = 0;

// The device that torch is to use in the place of one that a binding names.
int32_t device_behind(int32_t device_type, int32_t device_index) {
  if (device_type != aoti_torch_device_type_cuda() || device_index != kIndex) {
    throw std::runtime_error("a binding for CUDA uses device " + std::to_string(device_index) + " of type " +
                             std::to_string(device_type) + " instead of cuda:0");
  }
  return aoti_torch_device_type_cpu();
}

int32_t current_stream(int32_t device_index, void** stream) {
  device_behind(aoti_torch_device_type_cuda(), device_index);
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

}  // namespace

extern "C" {

AOTITorchError __real_aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t,
                                                   TorchLibraryHandle*);
AOTITorchError __real_aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t,
                                               AtenTensorHandle*);
AOTITorchError __real_aoti_torch_create_tensor_from_blob(void*, int64_t, const int64_t*, const int64_t*, int64_t,
                                                         int32_t, int32_t, int32_t, AtenTensorHandle*);
AOTITorchError __real_torch_call_dispatcher(const char*, const char*, StableIValue*, uint64_t);
void* __real_dlopen(const char*, int);
void* __real_dlsym(void*, const char*);

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
  *result = kIndex;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_aoti_torch_create_device_guard(int32_t device_index, DeviceGuardHandle* result) {
  device_behind(aoti_torch_device_type_cuda(), device_index);
  *result = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

AOTITorchError __wrap_aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                               int32_t device_type, int32_t device_index, AtenTensorHandle* result) {
  const int32_t error =
      __real_aoti_torch_empty_strided(dim, sizes, strides, dtype, device_behind(device_type, device_index), -1, result);
  int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  for (int64_t d = 0; d < dim; ++d) bytes *= sizes[d];
  void* data = nullptr;
  if (error == AOTI_TORCH_SUCCESS && aoti_torch_get_data_ptr(*result, &data) == AOTI_TORCH_SUCCESS && bytes > 0) {
    memset(data, 0xff, static_cast<size_t>(bytes));
  }
  return error;
}

AOTITorchError __wrap_aoti_torch_create_tensor_from_blob(void* data, int64_t dim, const int64_t* sizes,
                                                         const int64_t* strides, int64_t offset, int32_t dtype,
                                                         int32_t device_type, int32_t device_index,
                                                         AtenTensorHandle* result) {
  return __real_aoti_torch_create_tensor_from_blob(data, dim, sizes, strides, offset, dtype,
                                                   device_behind(device_type, device_index), -1, result);
}

// Products have the same bits with any number of threads, as on a GPU: MKL splits sums between threads.
AOTITorchError __wrap_torch_call_dispatcher(const char* op, const char* overload, StableIValue* stack,
                                            uint64_t version) {
  const int threads = MKL_Set_Num_Threads_Local != nullptr ? MKL_Set_Num_Threads_Local(1) : 0;
  const AOTITorchError error = __real_torch_call_dispatcher(op, overload, stack, version);
  if (MKL_Set_Num_Threads_Local != nullptr) MKL_Set_Num_Threads_Local(threads);
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

// For Python: charlm._C knows only the branches of its own copy of the bindings.
__attribute__((visibility("default"))) const char* rehearsal_last_branch() { return charlm::last_branch(); }

}  // extern "C"
