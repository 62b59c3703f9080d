// What a binding for CUDA needs beside checks.h: the right device and stream for its launches, and their limit.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <limits>

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

// Kernels count classes in 32 bits.
inline void check_class_count(int64_t classes) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  check(classes <= kMost, "there must be at most ", kMost, " classes on CUDA, got ", classes);
}

}  // namespace charlm
