#include "bindings/check.h"

#include <atomic>
#include <iomanip>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace charlm {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < 2 * kHugePage) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  // Advice only: where the kernel declines, pages stay small.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Strides that cover memory without gaps or overlaps, in any order of dimensions.
bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous()) return true;
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t expected = 1;
  for (size_t seen = 0; seen < sizes.size(); ++seen) {
    bool found = false;
    for (size_t d = 0; d < sizes.size() && !found; ++d) {
      if (sizes[d] != 1 && strides[d] == expected) {
        expected *= sizes[d];
        found = true;
      }
    }
    if (!found) break;
  }
  return expected == tensor.numel();
}

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

std::atomic<const char*> branch{""};

}  // namespace

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

bool is_integral(ScalarType type) {
  return type == ScalarType::Long || type == ScalarType::Int || type == ScalarType::Short || type == ScalarType::Char ||
         type == ScalarType::Byte || type == ScalarType::UInt16 || type == ScalarType::UInt32 ||
         type == ScalarType::UInt64;
}

namespace {
bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
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

int64_t product(const char* name, torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  int64_t result = 1;
  bool fits = true;
  for (const int64_t size : sizes) fits = fits && !__builtin_mul_overflow(result, size, &result);
  check(fits, name, " has sizes that are too large to be multiplied: ", ShapeString(sizes));
  return result;
}

template <typename T>
const DtypeString kDtype(sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);

template <typename T>
T option_as(const char* name, double value) {
  check(fits<T>(value), name, " must be between ", std::numeric_limits<T>::min(), " and ",
        std::numeric_limits<T>::max(), " to be a number in ", kDtype<T>, ", got ", value);
  return static_cast<T>(value);
}
template float option_as(const char* name, double value);
template double option_as(const char* name, double value);

template <typename T>
T fraction_as(const char* name, double value) {
  const T result = option_as<T>(name, value);
  check(result < 1, name, " must be less than 1 in ", kDtype<T>, ", got ", std::setprecision(17), value);
  return result;
}
template float fraction_as(const char* name, double value);
template double fraction_as(const char* name, double value);

void check_floating(const char* name, const Tensor& tensor) {
  check(is_floating(tensor.scalar_type()), name, " must have dtype float32, float64, bfloat16 or float16, got ",
        DtypeString(tensor.scalar_type()));
  check_memory(name, tensor);
}

void check_integral(const char* name, const Tensor& tensor) {
  check(is_integral(tensor.scalar_type()), name, " must have an integer dtype, got ",
        DtypeString(tensor.scalar_type()));
  check_memory(name, tensor);
}

void check_on_cpu(const char* name, const Tensor& tensor) {
  check(tensor.is_cpu(), name, " must be on the CPU like the other arguments, got ", DeviceString(tensor));
}

void check_same_device(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  check(tensor.device() == other.device(), name, " must be on the device of ", other_name, ", ", DeviceString(other),
        ", got ", DeviceString(tensor));
}

void check_matches(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  check_same_device(name, tensor, other_name, other);
  check(tensor.scalar_type() == other.scalar_type(), name, " must have the dtype of ", other_name, ", ",
        DtypeString(other.scalar_type()), ", got ", DtypeString(tensor.scalar_type()));
  check_memory(name, tensor);
}

Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Storage::kFloat64;
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    case ScalarType::Half:
      return Storage::kFloat16;
    default:
      return Storage::kFloat32;
  }
}

ScalarType compute_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void out_of_memory(unsigned __int128 bytes, const Device& device) {
  const auto digits = [](unsigned __int128 number) {
    std::string text;
    do text.insert(text.begin(), static_cast<char>('0' + static_cast<int>(number % 10)));
    while ((number /= 10) != 0);
    return text;
  };
  throw std::runtime_error(concatenate("can't allocate memory on ", DeviceString(device), ": you tried to allocate ",
                                       digits(bytes), " bytes"));
}

Tensor allocate_strided(const int64_t* sizes, const int64_t* strides, int64_t dim, ScalarType type,
                        const Device& device) {
  // The C shim directly: the boxed aten::empty costs several times as much, which tiny tensors would notice.
  AtenTensorHandle handle = nullptr;
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  if (aoti_torch_empty_strided(dim, sizes, strides, dtype, static_cast<int32_t>(device.type()), device.index(),
                               &handle) != AOTI_TORCH_SUCCESS) [[unlikely]] {
    unsigned __int128 values = 1;
    for (int64_t d = 0; d < dim; ++d) values *= static_cast<unsigned __int128>(sizes[d]);
    out_of_memory(values * aoti_torch_dtype_element_size(dtype), device);
  }
  Tensor tensor(handle);
  if (device.is_cpu()) advise_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

Tensor allocate(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type, const Device& device) {
  int64_t small[8];
  std::vector<int64_t> large(sizes.size() > 8 ? sizes.size() : 0);
  int64_t* strides = large.empty() ? small : large.data();
  int64_t stride = 1;
  bool fits = true;
  for (int64_t d = static_cast<int64_t>(sizes.size()) - 1; d >= 0; --d) {
    strides[d] = stride;
    fits = fits && !__builtin_mul_overflow(stride, sizes[d] > 0 ? sizes[d] : 1, &stride);
  }
  check(fits, "no tensor can have shape ", ShapeString(sizes));
  return allocate_strided(sizes.data(), strides, static_cast<int64_t>(sizes.size()), type, device);
}

Tensor allocate(std::initializer_list<int64_t> sizes, ScalarType type, const Device& device) {
  return allocate(torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type, device);
}

Tensor allocate_like(const Tensor& tensor) {
  if (is_dense(tensor)) {
    return allocate_strided(tensor.sizes().data(), tensor.strides().data(), tensor.dim(), tensor.scalar_type(),
                            tensor.device());
  }
  try {
    return torch::stable::empty_like(tensor);
  } catch (const std::exception&) {  // says that it failed, not why
    out_of_memory(static_cast<unsigned __int128>(tensor.numel()) * tensor.element_size(), tensor.device());
  }
}

// Allocated here, so that the error where there is no memory is ours.
Tensor contiguous_as(const Tensor& tensor, ScalarType type) {
  if (tensor.scalar_type() == type && tensor.is_contiguous()) return tensor;
  Tensor copy = allocate(tensor.sizes(), type, tensor.device());
  torch::stable::copy_(copy, tensor);
  return copy;
}

Tensor zeros(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type, const Device& device) {
  Tensor tensor = allocate(sizes, type, device);
  torch::stable::zero_(tensor);
  return tensor;
}

void took_branch(const char* name) { branch.store(name, std::memory_order_relaxed); }
const char* last_branch() { return branch.load(std::memory_order_relaxed); }

}  // namespace charlm
