// Checks of arguments that several ops have in common.
#pragma once

#include <limits>

#include "bindings/errors.h"

namespace charlm {

// Throws where the storage has not the bytes that the tensor's elements need, as after `storage.resize_(0)`, by which
// FSDP frees parameters. Part of the checks below; for a tensor that none of them is about.
void check_memory(const char* name, const Tensor& tensor);
void check_floating(const char* name, const Tensor& tensor);
void check_integral(const char* name, const Tensor& tensor);
void check_on_cpu(const char* name, const Tensor& tensor);
// `tensor` where the CPU can read it: itself on the CPU, a copy, for which this waits, where it is on a GPU.
Tensor on_cpu(const char* name, const Tensor& tensor);
void check_same_device(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other);
// `tensor` has the dtype and the device of `other`.
void check_matches(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other);

struct NamedSize {
  const char* name;
  int64_t value;
};
// "weight must have shape (H=200, T*D=30), got (200, 31)"
void check_shape(const char* name, const Tensor& tensor, std::initializer_list<NamedSize> sizes);
// `meaning` comes before the sizes that are expected, such as "(V, D) = ".
void check_shape(const char* name, const Tensor& tensor, Shape shape, const char* meaning = "");
// So many elements, of any shape.
void check_elements(const char* name, const Tensor& tensor, int64_t count);
// Throws unless there is room in 64 bits for the bytes of an array with all of these dimensions, each of them rounded
// up to a tile; a tensor expanded along a dimension may be of any size. Before anything is multiplied.
void check_sizes(std::initializer_list<NamedSize> sizes);
// The product of sizes, where it fits into 64 bits.
int64_t product(const char* name, Shape sizes);
// An output layer: input (..., D), linear_weight (C, D) and linear_bias (C,) of one dtype. Returns the input's rows.
int64_t check_output_layer(const Tensor& input, const Tensor& linear_weight, const OptionalTensor& linear_bias);

// Whether an option is a number in the dtype that is computed in, in which it must neither become infinite nor, unless
// it is 0, as good as 0.
template <typename T>
bool fits(double value) {
  const double magnitude = value < 0 ? -value : value;
  return magnitude == 0 || (magnitude >= std::numeric_limits<T>::min() && magnitude <= std::numeric_limits<T>::max());
}
template <typename T>
T option_as(const char* name, double value);
// Of one less than 1, which it must still be.
template <typename T>
T fraction_as(const char* name, double value);

}  // namespace charlm
