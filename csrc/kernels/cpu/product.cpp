#include "kernels/product.h"

#include "kernels/cpu/tiles.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {
namespace {

// A block of B stays in the second-level cache while all strips of A pass it; a strip of A stays in the first-level
// cache while all panels of the block pass it. Strips are packed once for so many rows. Bytes of a step: of a value, or
// of a pair.
constexpr int64_t kDepthBytes = 1024;
constexpr int64_t kBlockColumns = 384, kMostBlockRows = 1008;

template <typename Element>
struct Blocked {
  using T = SumOf<Element>;
  static constexpr int64_t kBlockSteps = kDepthBytes / (int64_t)sizeof(Element);
  static constexpr int64_t kDepth = kBlockSteps * kSteps<Element>;
  static constexpr int64_t kRows = kStripRows<Element>, kBlockRows = kMostBlockRows / kRows * kRows;

  static int64_t strips_size(int64_t rows) { return (rows + kRows - 1) / kRows * kRows * kBlockSteps; }
  static int64_t scratch_bytes(int64_t rows, int64_t columns) {
    const int64_t block_rows = rows < kBlockRows ? rows : kBlockRows;
    const int64_t block_columns = columns < kBlockColumns ? padded_columns<T>(columns) : kBlockColumns;
    return (strips_size(block_rows) + block_columns * kBlockSteps) * (int64_t)sizeof(Element);
  }

  static void pack_strips(const Matrix& a, Element* strips) {
    with_storage<T>(a.data, a.storage, [&](const auto* data) {
      for (int64_t row = 0; row < a.rows; row += kRows) {
        const int64_t count = a.rows - row < kRows ? a.rows - row : kRows;
        pack_strip(data + row * a.row_stride, a.column_stride, a.row_stride, a.columns, count,
                   strips + row * kBlockSteps);
      }
    });
  }

  static void multiply(const Matrix& out, const Matrix& a, const Matrix& b, bool accumulate, void* scratch) {
    Element* strips = static_cast<Element*>(scratch);
    for (int64_t row = 0; row < out.rows; row += kBlockRows) {
      const int64_t rows = out.rows - row < kBlockRows ? out.rows - row : kBlockRows;
      Element* panels = strips + strips_size(rows);
      for (int64_t k = 0; k < a.columns; k += kDepth) {
        const int64_t depth = a.columns - k < kDepth ? a.columns - k : kDepth;
        const int64_t steps = padded_steps<Element>(depth);
        pack_strips(a.rows_from(row, rows).columns_from(k, depth), strips);
        for (int64_t column = 0; column < out.columns; column += kBlockColumns) {
          const int64_t columns = out.columns - column < kBlockColumns ? out.columns - column : kBlockColumns;
          const Matrix block = b.rows_from(k, depth).columns_from(column, columns);
          with_storage<T>(block.data, block.storage, [&](const auto* data) {
            pack_panels(data, block.row_stride, block.column_stride, depth, columns, panels);
          });
          for (int64_t r = 0; r < rows; r += kRows) {
            T* c = static_cast<T*>(out.at((row + r) * out.row_stride + column));
            multiply_strip(rows - r < kRows ? rows - r : kRows, columns, 0, steps, strips + r * kBlockSteps,
                           Panels<Element>{panels, steps}, c, out.row_stride, accumulate || k > 0);
          }
        }
      }
    }
  }
};

#if CHARLM_HAS_PAIRS
bool multiplies_pairs(const Matrix& a, const Matrix& b) {
  return a.storage == Storage::kBFloat16 || b.storage == Storage::kBFloat16;
}
#endif

template <typename T>
int64_t scratch_bytes(const Matrix& a, const Matrix& b) {
#if CHARLM_HAS_PAIRS
  if (multiplies_pairs(a, b)) return Blocked<Pair>::scratch_bytes(a.rows, b.columns);
#endif
  return Blocked<T>::scratch_bytes(a.rows, b.columns);
}

template <typename T>
void multiply(const Matrix& out, const Matrix& a, const Matrix& b, bool accumulate, void* scratch) {
#if CHARLM_HAS_PAIRS
  if constexpr (sizeof(T) == 4) {
    if (multiplies_pairs(a, b)) {
#if CHARLM_HAS_TILES
      [[maybe_unused]] const TilesInUse tiles;
#endif
      return Blocked<Pair>::multiply(out, a, b, accumulate, scratch);
    }
  }
#endif
  Blocked<T>::multiply(out, a, b, accumulate, scratch);
}

template <typename T>
void store(const T* values, int64_t count, void* to, Storage storage) {
  with_storage<T>(to, storage, [&](auto* out) {
    for_each_vector<T>(count,
                       [&](int64_t i, int lanes) { store_as(out + i, load_lanes<T>(values + i, lanes, 0), lanes); });
  });
}

}  // namespace

template <>
ProductKernels<float> kernels() {
  return {scratch_bytes<float>, multiply<float>, store<float>};
}
template <>
ProductKernels<double> kernels() {
  return {scratch_bytes<double>, multiply<double>, store<double>};
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
