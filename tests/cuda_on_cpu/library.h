// What launchers of whole layers get from torch, as plain loops.
#pragma once

#include "kernels/device_library.h"

namespace simulator {

class Library final : public charlm::cuda::DeviceLibrary {
 public:
  using Matrix = charlm::cuda::Matrix;

  void* allocate(int64_t bytes) override;
  void multiply(const Matrix& out, const Matrix& a, const Matrix& b) override;
  void multiply_add(const Matrix& out, const Matrix& addend, const Matrix& a, const Matrix& b) override;
  Sorted sort(const int32_t* keys, int64_t count) override;
};

}  // namespace simulator
