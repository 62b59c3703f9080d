#include "bindings/errors.h"

#if defined(__linux__)
// Of libtorch from 2.13 on.
extern "C" const char* torch_exception_get_what_without_backtrace() __attribute__((weak));
#endif

namespace charlm {

std::ostream& operator<<(std::ostream& stream, const ShapeString& part) {
  stream << '(';
  for (size_t d = 0; d < part.shape.size(); ++d) stream << (d > 0 ? ", " : "") << part.shape[d];
  return stream << (part.shape.size() == 1 ? ",)" : ")");
}

std::ostream& operator<<(std::ostream& stream, const DtypeString& part) {
  switch (part.type) {
    case ScalarType::Float:
      return stream << "float32";
    case ScalarType::Double:
      return stream << "float64";
    case ScalarType::Half:
      return stream << "float16";
    case ScalarType::Long:
      return stream << "int64";
    case ScalarType::Int:
      return stream << "int32";
    case ScalarType::Short:
      return stream << "int16";
    case ScalarType::Char:
      return stream << "int8";
    case ScalarType::Byte:
      return stream << "uint8";
    case ScalarType::ComplexFloat:
      return stream << "complex64";
    case ScalarType::ComplexDouble:
      return stream << "complex128";
    default: {
      std::string name = torch::headeronly::toString(part.type);
      for (char& c : name) c = static_cast<char>(tolower(c));
      return stream << name;
    }
  }
}

std::ostream& operator<<(std::ostream& stream, const DeviceString& part) {
  if (part.device.is_cpu()) return stream << "cpu";
  if (part.device.is_cuda()) return stream << "cuda:" << part.device.index();
  return stream << "a device of type " << static_cast<int>(part.device.type());
}

namespace {

// "[3]" or "[1, 2]"; "" of a scalar.
std::string place_string(int64_t place, Shape shape) {
  std::vector<int64_t> index(shape.size());
  for (size_t d = shape.size(); d-- > 0;) {
    index[d] = place % shape[d];
    place /= shape[d];
  }
  std::ostringstream stream;
  for (size_t d = 0; d < index.size(); ++d) stream << (d == 0 ? "[" : ", ") << index[d];
  if (!index.empty()) stream << ']';
  return stream.str();
}

}  // namespace

void out_of_range(const char* name, int64_t place, Shape shape, const std::string& value, int64_t limit,
                  const char* what) {
  throw std::out_of_range(
      concatenate(name, place_string(place, shape), " = ", value, " is out of range for ", limit, " ", what));
}

std::string torchs_reason() {
#if defined(__linux__)
  if (torch_exception_get_what_without_backtrace != nullptr) {
    const std::string text = torch_exception_get_what_without_backtrace();
    if (!text.empty()) return ": " + text.substr(0, text.find('\n'));
  }
#endif
  return "";
}

void out_of_memory(unsigned __int128 bytes, const Device& device) {
  const auto digits = [](unsigned __int128 number) {
    std::string text;
    do text.insert(text.begin(), static_cast<char>('0' + static_cast<int>(number % 10)));
    while ((number /= 10) != 0);
    return text;
  };
  throw std::runtime_error(concatenate("can't allocate memory on ", DeviceString(device), ": you tried to allocate ",
                                       digits(bytes), " bytes", device.is_cpu() ? "" : torchs_reason()));
}

}  // namespace charlm
