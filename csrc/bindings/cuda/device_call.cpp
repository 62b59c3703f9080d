#include "bindings/cuda/device_call.h"

#include <dlfcn.h>

#include "bindings/gpu_support.h"

namespace charlm {
namespace {

using GetStream = int32_t (*)(int32_t device, void** stream);

// Libtorch's stable interface has streams as CUDA knows them from 2.13 on; before, only torch's CUDA library has. It is
// looked up, not linked, so that this binary also loads where torch has none.
GetStream find_get_stream() {
  void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  return torch_cuda == nullptr ? nullptr
                               : reinterpret_cast<GetStream>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
}

cuda::Stream current_stream(int32_t device) {
  static const GetStream get_stream = find_get_stream();
  if (get_stream == nullptr) throw std::runtime_error("this torch has no CUDA: install a torch that does");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get_stream(device, &stream));
  return static_cast<cuda::Stream>(stream);
}

Device device_of(const char* name, const Tensor& tensor) {
  check(tensor.is_cuda(), name, " must be on a CUDA device, got ", DeviceString(tensor));
  const Device device = tensor.device();
  if (const auto why = why_no_kernels(device.index())) throw std::runtime_error(*why);
  return device;
}

}  // namespace

DeviceCall::DeviceCall(const char* name, const Tensor& tensor)
    : device(device_of(name, tensor)), guard_(device.index()), stream_(current_stream(device.index())) {
  check(cuda::use_device(device.index()));
}

void DeviceCall::check(cuda::Error error) {
  if (error != 0) throw std::runtime_error(concatenate("CUDA error: ", cuda::error_message(error)));
}

}  // namespace charlm
