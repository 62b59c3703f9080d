// What launchers of whole layers ask of a library, by torch: its memory, its products (cuBLAS) and its sort.
#pragma once

#include "bindings/cuda/device_call.h"
#include "kernels/device_library.h"

namespace charlm {

// For one call; its memory goes back to torch's pool at the end, where later calls of the stream find it.
class TorchLibrary final : public cuda::DeviceLibrary {
 public:
  explicit TorchLibrary(const DeviceCall& call) : call_(call) {}

  void* allocate(int64_t bytes) override;
  void multiply(const Matrix& out, const Matrix& a, const Matrix& b) override;
  void multiply_add(const Matrix& out, const Matrix& addend, const Matrix& a, const Matrix& b) override;
  Sorted sort(const int32_t* keys, int64_t count) override;

 private:
  const DeviceCall& call_;
  std::vector<Tensor> memory_;
};

}  // namespace charlm
