// Errors and how they are worded: std::invalid_argument reaches Python as ValueError, std::out_of_range as IndexError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "bindings/tensors.h"

namespace charlm {

template <typename... Parts>
std::string concatenate(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

// check(condition, "weight must have shape ", ...): a ValueError unless the condition holds.
template <typename... Parts>
void check(bool condition, const Parts&... message) {
  if (!condition) [[unlikely]] {
    throw std::invalid_argument(concatenate(message...));
  }
}

// Parts of messages, formatted only when a check fails: "(200, 31)", "(5,)", "()", "float32" and "cuda:0".
struct ShapeString {
  Shape shape;
  explicit ShapeString(Shape shape) : shape(shape) {}
  explicit ShapeString(const Tensor& tensor) : shape(tensor.sizes()) {}
};
struct DtypeString {
  ScalarType type;
  explicit DtypeString(ScalarType type) : type(type) {}
  explicit DtypeString(const Tensor& tensor) : type(tensor.scalar_type()) {}
};
struct DeviceString {
  Device device;
  explicit DeviceString(const Device& device) : device(device) {}
  explicit DeviceString(const Tensor& tensor) : device(tensor.device()) {}
};
std::ostream& operator<<(std::ostream& stream, const ShapeString& part);
std::ostream& operator<<(std::ostream& stream, const DtypeString& part);
std::ostream& operator<<(std::ostream& stream, const DeviceString& part);

// An IndexError, "target[3, 0] = 27 is out of range for 27 classes", about the value at a place of a tensor that is
// counted in row-major order.
[[noreturn]] void out_of_range(const char* name, int64_t place, Shape shape, const std::string& value, int64_t limit,
                               const char* what);
// Why the last function of torch's that failed did so, as ": " and a line; "" from a torch that does not say.
std::string torchs_reason();
// `bytes` may be more than 64 bits hold.
[[noreturn]] void out_of_memory(unsigned __int128 bytes, const Device& device = kCpu);

}  // namespace charlm
