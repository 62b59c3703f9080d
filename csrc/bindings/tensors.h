// Torch's tensors: their names here, what type is computed in for each, and new ones.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "kernels/matrix.h"

namespace charlm {

using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = torch::headeronly::IntHeaderOnlyArrayRef;

inline const Device kCpu{torch::headeronly::DeviceType::CPU};

bool is_floating(ScalarType type);
bool is_integral(ScalarType type);
Storage storage_of(const Tensor& tensor);
ScalarType scalar_type(Storage storage);

// The dtype of values of type T, which kernels compute in: float64 for float64, float32 for everything else.
template <typename T>
inline constexpr ScalarType kDtype = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
ScalarType compute_type(const Tensor& tensor);
// function(T{}) with T of the compute type.
template <typename Function>
auto dispatch_compute_type(const Tensor& tensor, const Function& function) {
  return compute_type(tensor) == ScalarType::Double ? function(double{}) : function(float{});
}

// The sizes but the last: (N, ...) of (N, ..., D).
inline Shape leading_sizes(const Tensor& tensor) { return {tensor.sizes().data(), tensor.sizes().size() - 1}; }

// Asks for huge pages where memory is large: fresh memory then costs half as much to touch.
void advise_huge_pages(void* data, size_t bytes);

// Uninitialised, contiguous.
Tensor allocate(Shape sizes, ScalarType type, const Device& device = kCpu);
// The shape and the device of `tensor`, and its strides where these cover memory without gaps or overlaps.
Tensor allocate_like(const Tensor& tensor);
Tensor zeros(Shape sizes, ScalarType type, const Device& device);

// A gradient in the dtype of T, and its memory; empty and null where it is not wanted.
template <typename T>
Tensor allocate_gradient(Shape sizes, bool wanted, T** data) {
  const Tensor gradient = wanted ? allocate(sizes, kDtype<T>) : allocate({0}, kDtype<T>);
  *data = wanted ? gradient.mutable_data_ptr<T>() : nullptr;
  return gradient;
}

// `tensor` as a contiguous tensor of the given dtype; itself where it is one.
Tensor contiguous_as(const Tensor& tensor, ScalarType type);
inline Tensor as_contiguous(const Tensor& tensor) { return contiguous_as(tensor, tensor.scalar_type()); }
inline OptionalTensor contiguous_as(const OptionalTensor& tensor, ScalarType type) {
  return tensor.has_value() ? OptionalTensor(contiguous_as(*tensor, type)) : std::nullopt;
}

// A tensor of two dimensions as a matrix, and a tensor of memory that must outlive it.
Matrix matrix_of(const Tensor& tensor);
Tensor tensor_at(const void* data, ScalarType type, Shape sizes, Shape strides, const Device& device);
Tensor tensor_at(const Matrix& matrix, const Device& device);

}  // namespace charlm
