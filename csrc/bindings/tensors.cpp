#include "bindings/tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "bindings/errors.h"

namespace charlm {
namespace {

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

}  // namespace

bool is_integral(ScalarType type) {
  return type == ScalarType::Long || type == ScalarType::Int || type == ScalarType::Short || type == ScalarType::Char ||
         type == ScalarType::Byte || type == ScalarType::UInt16 || type == ScalarType::UInt32 ||
         type == ScalarType::UInt64;
}

bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
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

ScalarType scalar_type(Storage storage) {
  switch (storage) {
    case Storage::kFloat64:
      return ScalarType::Double;
    case Storage::kBFloat16:
      return ScalarType::BFloat16;
    case Storage::kFloat16:
      return ScalarType::Half;
    default:
      return ScalarType::Float;
  }
}

ScalarType compute_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kHugePage = size_t{2} << 20;
  if (bytes < 2 * kHugePage) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  // Advice only: where the kernel declines, pages stay small.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

namespace {
Tensor allocate_strided(Shape sizes, Shape strides, ScalarType type, const Device& device) {
  // The C shim directly: the boxed aten::empty costs several times as much, which tiny tensors would notice.
  AtenTensorHandle handle = nullptr;
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                               static_cast<int32_t>(device.type()), device.index(), &handle) != AOTI_TORCH_SUCCESS)
      [[unlikely]] {
    unsigned __int128 values = 1;
    for (const int64_t size : sizes) values *= static_cast<unsigned __int128>(size);
    out_of_memory(values * aoti_torch_dtype_element_size(dtype), device);
  }
  Tensor tensor(handle);
  if (device.is_cpu()) advise_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}
}  // namespace

Tensor allocate(Shape sizes, ScalarType type, const Device& device) {
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
  return allocate_strided(sizes, Shape(strides, sizes.size()), type, device);
}

Tensor allocate_like(const Tensor& tensor) {
  if (is_dense(tensor)) {
    return allocate_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type(), tensor.device());
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
  if (copy.numel() > 0) torch::stable::copy_(copy, tensor);
  return copy;
}

Tensor zeros(Shape sizes, ScalarType type, const Device& device) {
  Tensor tensor = allocate(sizes, type, device);
  torch::stable::zero_(tensor);
  return tensor;
}

Matrix matrix_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), storage_of(tensor), tensor.size(0),
          tensor.size(1),          tensor.stride(0),   tensor.stride(1)};
}

Tensor tensor_at(const void* data, ScalarType type, Shape sizes, Shape strides, const Device& device) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      const_cast<void*>(data), static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), static_cast<int32_t>(device.type()),
      device.index(), &handle));
  return Tensor(handle);
}

Tensor tensor_at(const Matrix& matrix, const Device& device) {
  return tensor_at(matrix.data, scalar_type(matrix.storage), {matrix.rows, matrix.columns},
                   {matrix.row_stride, matrix.column_stride}, device);
}

}  // namespace charlm
