#include "bindings/cuda/torch_library.h"

#include <algorithm>
#include <array>

namespace charlm {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// The result or the first of the results; tensors in the stack are handed over.
template <size_t kCount>
void call(const char* op, const char* overload, std::array<StableIValue, kCount>* stack) {
  if (torch_call_dispatcher(op, overload, stack->data(), TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS) {
    const std::string reason = torchs_reason();
    throw std::runtime_error(concatenate(
        op, " failed", reason.empty() ? ": torch says why on standard error, mostly that memory has run out" : reason));
  }
}

}  // namespace

void* TorchLibrary::allocate(int64_t bytes) {
  memory_.push_back(charlm::allocate({std::max<int64_t>(bytes, 1)}, ScalarType::Byte, call_.device));
  return memory_.back().mutable_data_ptr();
}

void TorchLibrary::multiply(const Matrix& out, const Matrix& a, const Matrix& b) {
  if (out.rows == 0 || out.columns == 0) return;
  if (out.storage == a.storage) {
    std::array<StableIValue, 3> stack{from(tensor_at(a, call_.device)), from(tensor_at(b, call_.device)),
                                      from(tensor_at(out, call_.device))};
    call("aten::mm", "out", &stack);
    to<Tensor>(stack[0]);
  } else {
    std::array<StableIValue, 4> stack{from(tensor_at(a, call_.device)), from(tensor_at(b, call_.device)),
                                      from(scalar_type(out.storage)), from(tensor_at(out, call_.device))};
    call("aten::mm", "dtype_out", &stack);
    to<Tensor>(stack[0]);
  }
}

// Numbers that may be of any type, as beta is, cannot pass through the stable interface: charlm/ops/_products.py, which
// implements this op for CUDA, makes the call.
void TorchLibrary::multiply_add(const Matrix& out, const Matrix& addend, const Matrix& a, const Matrix& b) {
  if (out.rows == 0 || out.columns == 0) return;
  const Tensor result = tensor_at(out, call_.device);
  // As a vector a row becomes part of cuBLAS's product.
  const Tensor added = addend.data == out.data
                           ? result
                           : tensor_at(addend.data, scalar_type(addend.storage), {addend.columns}, {1}, call_.device);
  std::array<StableIValue, 4> stack{from(added), from(tensor_at(a, call_.device)), from(tensor_at(b, call_.device)),
                                    from(result)};
  call("charlm::multiply_add", "", &stack);
}

cuda::DeviceLibrary::Sorted TorchLibrary::sort(const int32_t* keys, int64_t count) {
  const Tensor unsorted = tensor_at(keys, ScalarType::Int, {count}, {1}, call_.device);
  std::array<StableIValue, 4> stack{from(unsorted), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  call("aten::sort", "stable", &stack);
  const Tensor sorted = to<Tensor>(stack[0]), order = to<Tensor>(stack[1]);
  memory_.push_back(sorted);
  memory_.push_back(order);
  return {sorted.const_data_ptr<int32_t>(), order.const_data_ptr<int64_t>()};
}

}  // namespace charlm
