// What a binding for CUDA needs beside checks.h: the right device and stream for its launches.
#pragma once

#include <torch/csrc/stable/accelerator.h>

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

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cuda::Stream stream_;
};

}  // namespace charlm
