#include "kernels/cross_entropy.h"

#include "kernels/cpu/cross_entropy_narrow.h"
#include "kernels/cpu/cross_entropy_tile.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {
namespace {

template <typename T, typename S, bool kCapped>
void tile(const CrossEntropy<T>& problem, int64_t first, int64_t count, T* scratch) {
  Tile<T, S, kCapped>{problem, first, count}.run(scratch);
}

// Tiles [first, last), with `general` where they are not narrow.
template <typename T, typename S, typename General>
void run_tiles(const CrossEntropy<T>& problem, int64_t first, int64_t last, T* scratch, const General& general) {
  const int64_t tile_rows = cross_entropy_tile_rows(problem.classes);
  const int64_t end = last * tile_rows < problem.rows ? last * tile_rows : problem.rows;
  int64_t row = first * tile_rows;
  if (end - row >= kWidth<T> && NarrowTile<T, S>::applies_to(problem)) {
    NarrowTile<T, S> narrow(problem);
    for (; end - row >= kWidth<T>; row += tile_rows) {
      const int64_t left = end - row < tile_rows ? end - row : tile_rows, count = left / kWidth<T> * kWidth<T>;
      if (!narrow.run(row, count, scratch)) general(problem, row, count, scratch);
      if (count < left) general(problem, row + count, left - count, scratch);
    }
  }
  for (; row < end; row += tile_rows) {
    general(problem, row, end - row < tile_rows ? end - row : tile_rows, scratch);
  }
}

// Whether logits and gradient are rows of S. Rare options are computed from copies in T.
template <typename S, typename T>
bool reads_in_place(const CrossEntropy<T>& problem) {
  return problem.softcap == 0 && is_direct<S>(problem.input) &&
         (problem.input_gradient.data == nullptr || is_direct<S>(problem.input_gradient));
}

template <typename T>
void tiles(const CrossEntropy<T>& problem, int64_t first, int64_t last, T* scratch) {
  if constexpr (sizeof(T) == 4) {
    if (reads_in_place<BFloat16>(problem)) {
      return run_tiles<T, BFloat16>(problem, first, last, scratch, tile<T, BFloat16, false>);
    }
    if (reads_in_place<Float16>(problem)) {
      return run_tiles<T, Float16>(problem, first, last, scratch, tile<T, Float16, false>);
    }
  }
  run_tiles<T, T>(problem, first, last, scratch, problem.softcap != 0 ? tile<T, T, true> : tile<T, T, false>);
}

template <typename T>
void scale_rows(const ClassMatrix& matrix, int64_t rows, int64_t classes, const T* factors) {
  with_storage<T>(matrix, [&](auto* data) CHARLM_LAMBDA_INLINE {
    for (int64_t r = 0; r < rows; ++r) {
      const T factor = factors[r];
      auto* const row = data + matrix.row_offset(r);
      if (matrix.class_stride == 1) {
        for_each_vector<T>(classes, [&](int64_t c, int lanes) CHARLM_LAMBDA_INLINE {
          store_as(row + c, load_as(row + c, lanes) * factor, lanes);
        });
      } else {
        for (int64_t c = 0; c < classes * matrix.class_stride; c += matrix.class_stride) {
          from_compute(to_compute(row[c]) * factor, row + c);
        }
      }
    }
  });
}

}  // namespace

template <>
CrossEntropyKernels<float> kernels() {
  return {tiles<float>, scale_rows<float>};
}
template <>
CrossEntropyKernels<double> kernels() {
  return {tiles<double>, scale_rows<double>};
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
