// What a binding for CUDA needs beside checks.h: the right device and stream for its launches.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "bindings/branches.h"
#include "bindings/checks.h"
#include "kernels/device.h"

namespace charlm {

// While one lives, the device of `tensor` is current. Launches go to `stream`, torch's current one of that device.
class DeviceCall {
 public:
  explicit DeviceCall(const char* name, const Tensor& tensor);

  const Device device;
  cuda::Stream stream() const { return stream_; }
  // Throws where a launcher reports an error.
  static void check(cuda::Error error);
  // Uninitialised memory for the kernels of this call: torch gives it to nobody who could use it before they are done.
  // Never null, which means something else to launchers than no values.
  template <typename T>
  Tensor workspace(int64_t count) const {
    return allocate({std::max<int64_t>(count, 1)}, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float, device);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cuda::Stream stream_;
};

}  // namespace charlm
