#include "bindings/check.h"

#include <atomic>

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

void check_floating(const char* name, const Tensor& tensor) {
  check(is_floating(tensor.scalar_type()), name, " must have dtype float32, float64, bfloat16 or float16, got ",
        DtypeString(tensor.scalar_type()));
}

void check_integral(const char* name, const Tensor& tensor) {
  check(is_integral(tensor.scalar_type()), name, " must have an integer dtype, got ",
        DtypeString(tensor.scalar_type()));
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

Tensor allocate_strided(const int64_t* sizes, const int64_t* strides, int64_t dim, ScalarType type,
                        const Device& device) {
  // The C shim directly: the boxed aten::empty costs several times as much, which tiny tensors would notice.
  AtenTensorHandle handle = nullptr;
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, dtype, static_cast<int32_t>(device.type()),
                                                  device.index(), &handle));
  Tensor tensor(handle);
  if (device.is_cpu()) advise_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

Tensor allocate(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type, const Device& device) {
  int64_t small[8];
  std::vector<int64_t> large(sizes.size() > 8 ? sizes.size() : 0);
  int64_t* strides = large.empty() ? small : large.data();
  int64_t stride = 1;
  for (int64_t d = static_cast<int64_t>(sizes.size()) - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return allocate_strided(sizes.data(), strides, static_cast<int64_t>(sizes.size()), type, device);
}

Tensor allocate(std::initializer_list<int64_t> sizes, ScalarType type, const Device& device) {
  return allocate(torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type, device);
}

Tensor allocate_like(const Tensor& tensor) {
  if (!is_dense(tensor)) return torch::stable::empty_like(tensor);
  return allocate_strided(tensor.sizes().data(), tensor.strides().data(), tensor.dim(), tensor.scalar_type(),
                          tensor.device());
}

Tensor contiguous_as(const Tensor& tensor, ScalarType type) {
  const Tensor typed = tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

void took_branch(const char* name) { branch.store(name, std::memory_order_relaxed); }
const char* last_branch() { return branch.load(std::memory_order_relaxed); }

}  // namespace charlm
