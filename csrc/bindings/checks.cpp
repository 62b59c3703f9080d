#include "bindings/checks.h"

#include <iomanip>

namespace charlm {
namespace {

// The bytes of storage that the elements of a tensor reach to; as a number that cannot overflow.
unsigned __int128 bytes_needed(const Tensor& tensor) {
  unsigned __int128 last = tensor.storage_offset();
  if (tensor.is_contiguous()) {
    last += tensor.numel() - 1;
  } else {
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    for (size_t d = 0; d < sizes.size(); ++d) last += static_cast<unsigned __int128>(sizes[d] - 1) * strides[d];
  }
  return (last + 1) * tensor.element_size();
}

}  // namespace

void check_memory(const char* name, const Tensor& tensor) {
  if (tensor.numel() == 0) return;
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  if (bytes_needed(tensor) <= static_cast<unsigned __int128>(bytes) && tensor.const_data_ptr() != nullptr) [[likely]] {
    return;
  }
  if (!tensor.is_cpu() && !tensor.is_cuda()) return;  // without memory, and refused for that
  throw std::runtime_error(concatenate(name, " has shape ", ShapeString(tensor), ", but its storage has ", bytes,
                                       " bytes, less than that takes: its data is not allocated"));
}

void check_sizes(std::initializer_list<NamedSize> sizes) {
  constexpr int64_t kTile = 64, kMost = int64_t{1} << 60;
  int64_t values = 1;
  bool fits = true;
  for (const NamedSize& size : sizes) {
    fits = fits && size.value < kMost && !__builtin_mul_overflow(values, size.value + kTile, &values);
  }
  if (fits && values < kMost) [[likely]] {
    return;
  }
  std::string names;
  for (const NamedSize& size : sizes) {
    names += concatenate(names.empty() ? "" : ", ", size.name, "=", size.value);
  }
  throw std::invalid_argument(concatenate("sizes are too large to be multiplied: ", names));
}

int64_t product(const char* name, Shape sizes) {
  int64_t result = 1;
  bool fits = true;
  for (const int64_t size : sizes) fits = fits && !__builtin_mul_overflow(result, size, &result);
  check(fits, name, " has sizes that are too large to be multiplied: ", ShapeString(sizes));
  return result;
}

int64_t check_output_layer(const Tensor& input, const Tensor& linear_weight, const OptionalTensor& linear_bias) {
  check_floating("input", input);
  check(input.dim() >= 1, "input must have shape (..., D), got ()");
  check_matches("linear_weight", linear_weight, "input", input);
  const int64_t features = input.size(input.dim() - 1);
  check(linear_weight.dim() == 2 && linear_weight.size(1) == features, "linear_weight must have shape (C, D=", features,
        "), got ", ShapeString(linear_weight));
  const int64_t classes = linear_weight.size(0), rows = product("input", leading_sizes(input));
  check_sizes({{"N", rows}, {"C", classes}});
  check_sizes({{"N", rows}, {"D", features}});
  check_sizes({{"C", classes}, {"D", features}});
  if (linear_bias.has_value()) {
    check_matches("linear_bias", *linear_bias, "input", input);
    check_shape("linear_bias", *linear_bias, {{"C", classes}});
  }
  return rows;
}

template <typename T>
T option_as(const char* name, double value) {
  check(fits<T>(value), name, " must be between ", std::numeric_limits<T>::min(), " and ",
        std::numeric_limits<T>::max(), " to be a number in ", DtypeString(kDtype<T>), ", got ", value);
  return static_cast<T>(value);
}
template float option_as(const char* name, double value);
template double option_as(const char* name, double value);

template <typename T>
T fraction_as(const char* name, double value) {
  const T result = option_as<T>(name, value);
  check(result < 1, name, " must be less than 1 in ", DtypeString(kDtype<T>), ", got ", std::setprecision(17), value);
  return result;
}
template float fraction_as(const char* name, double value);
template double fraction_as(const char* name, double value);

void check_floating(const char* name, const Tensor& tensor) {
  check(is_floating(tensor.scalar_type()), name, " must have dtype float32, float64, bfloat16 or float16, got ",
        DtypeString(tensor));
  check_memory(name, tensor);
}

void check_integral(const char* name, const Tensor& tensor) {
  check(is_integral(tensor.scalar_type()), name, " must have an integer dtype, got ", DtypeString(tensor));
  check_memory(name, tensor);
}

void check_on_cpu(const char* name, const Tensor& tensor) {
  check(tensor.is_cpu(), name, " must be on the CPU like the other arguments, got ", DeviceString(tensor));
}

Tensor on_cpu(const char* name, const Tensor& tensor) {
  if (tensor.is_cuda()) return torch::stable::to(tensor, kCpu);
  check_on_cpu(name, tensor);
  return tensor;
}

void check_same_device(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  check(tensor.device() == other.device(), name, " must be on the device of ", other_name, ", ", DeviceString(other),
        ", got ", DeviceString(tensor));
}

void check_matches(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  check_same_device(name, tensor, other_name, other);
  check(tensor.scalar_type() == other.scalar_type(), name, " must have the dtype of ", other_name, ", ",
        DtypeString(other), ", got ", DtypeString(tensor));
  check_memory(name, tensor);
}

void check_shape(const char* name, const Tensor& tensor, Shape shape, const char* meaning) {
  check(tensor.sizes().equals(shape), name, " must have shape ", meaning, ShapeString(shape), ", got ",
        ShapeString(tensor));
}

void check_shape(const char* name, const Tensor& tensor, std::initializer_list<NamedSize> sizes) {
  bool matches = tensor.dim() == static_cast<int64_t>(sizes.size());
  for (size_t d = 0; matches && d < sizes.size(); ++d) matches = tensor.size(d) == sizes.begin()[d].value;
  if (matches) [[likely]] {
    return;
  }
  std::string expected;
  for (const NamedSize& size : sizes) {
    expected += concatenate(expected.empty() ? "" : " ", size.name, "=", size.value, ",");
  }
  if (sizes.size() > 1) expected.pop_back();
  throw std::invalid_argument(concatenate(name, " must have shape (", expected, "), got ", ShapeString(tensor)));
}

void check_elements(const char* name, const Tensor& tensor, int64_t count) {
  check(tensor.numel() == count, name, " must have ", count, " elements, got shape ", ShapeString(tensor));
  check_memory(name, tensor);
}

}  // namespace charlm
