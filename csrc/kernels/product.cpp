#include "kernels/product.h"

#include "kernels/host_library.h"

namespace charlm::cpu {
namespace {

// Multiply-adds that are worth waking a thread for.
constexpr int64_t kGrain = 1 << 20;
// Values to store that are.
constexpr int64_t kStoreGrain = 1 << 17;
// Up to so many narrow vectors take less time than waking wide ones.
constexpr int64_t kNarrowWork = 1 << 16;

}  // namespace

template <typename T>
void multiply(Write write, const Matrix& out, const Matrix& a, const Matrix& b, int64_t outputs) {
  if (out.rows == 0 || out.columns == 0) return;
  if (a.columns == 0) {
    for (int64_t r = 0; r < out.rows && write == Write::kSet; ++r) {
      fill_zero(out.at(r * out.row_stride), out.columns * storage_size(out.storage));
    }
    return;
  }
  const bool is_tiny = (outputs > 0 ? outputs : out.rows * out.columns) <= kNarrowWork / a.columns;
  const auto& kernels = is_tiny ? select_narrow<ProductKernels<T>>() : select<ProductKernels<T>>();
  const auto run = [&](const Matrix& part, const Matrix& left, const Matrix& right) {
    const Workspace<char> scratch(kernels.scratch_bytes(left, right));
    kernels.multiply(part, left, right, write == Write::kAdd, scratch.data());
  };
  // Threads share the longer side, as each packs all of the other.
  if (out.rows > out.columns) {
    parallel_for_columns(out.rows, kVectorColumns, 1 + kGrain / (out.columns * a.columns),
                         [&](int64_t first, int64_t last) {
                           run(out.rows_from(first, last - first), a.rows_from(first, last - first), b);
                         });
  } else {
    parallel_for_columns(out.columns, kVectorColumns, 1 + kGrain / (out.rows * a.columns),
                         [&](int64_t first, int64_t last) {
                           run(out.columns_from(first, last - first), a, b.columns_from(first, last - first));
                         });
  }
}

template <typename T>
void store(const T* values, int64_t count, void* to, Storage storage) {
  const auto run = select<ProductKernels<T>>().store;
  parallel_for_columns(count, kVectorColumns, kStoreGrain, [&](int64_t first, int64_t last) {
    run(values + first, last - first, static_cast<char*>(to) + first * storage_size(storage), storage);
  });
}

template void multiply<float>(Write, const Matrix&, const Matrix&, const Matrix&, int64_t);
template void multiply<double>(Write, const Matrix&, const Matrix&, const Matrix&, int64_t);
template void store(const float*, int64_t, void*, Storage);
template void store(const double*, int64_t, void*, Storage);

}  // namespace charlm::cpu
