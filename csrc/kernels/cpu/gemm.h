// Products of matrices, C (M x N) = A (M x K) B (K x N) or C += A B, on one thread: panels and register tiles.
//
// Both operands are packed into panels: the rows of A in strips of kTileRows, the columns of B in panels of
// kTileVectors vectors, each step of the inner dimension one after the other. A tile of C lives in registers while it
// walks along one strip and one panel. Packing is also where strides end, and where bfloat16 and float16 become what is
// computed in.
//
// Every element of C is added up in the same order, that of k and a part of fixed length at a time, whatever the shape
// around it: callers may cut M and N as they like, and results stay the same bits. cpu/product.cpp cuts large matrices
// for the caches.
//
// cpu/block_gemm.h is for operands that are in cache in blocks already: the engine's, of a few dozen rows and steps,
// for which packing would cost as much as the product.
#pragma once

#include "kernels/cpu/pairs.h"
#include "kernels/cpu/transpose.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

// kTileRows x kTileVectors sums, a vector of B for each of its columns and, where a processor has no operand in memory
// that it broadcasts, one of A fill the registers. The lower tile is for the rows that are left.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kTileRows = 14, kLowTileRows = 6;
#else
inline constexpr int kTileRows = 6, kLowTileRows = 3;
#endif
inline constexpr int kTileVectors = 2;

// What strips and panels consist of: values that are multiplied one by one, or pairs.
template <typename Element>
struct PanelTraits {
  using Sum = Element;
  static constexpr int64_t kSteps = 1;  // of the inner dimension
};
template <>
struct PanelTraits<Pair> {
  using Sum = float;
  static constexpr int64_t kSteps = 2;
};
template <typename Element>
using SumOf = typename PanelTraits<Element>::Sum;
template <typename Element>
inline constexpr int64_t kSteps = PanelTraits<Element>::kSteps;

// Rows of a strip, and steps that are multiplied in one instruction, which strips and panels are padded to. tiles.h has
// more of both.
template <typename Element>
inline constexpr int kStripRows = kTileRows;
template <typename Element>
inline constexpr int64_t kStepsAtOnce = 1;
template <typename Element>
constexpr int64_t padded_steps(int64_t depth) {
  constexpr int64_t kValues = kSteps<Element> * kStepsAtOnce<Element>;
  return (depth + kValues - 1) / kValues * kStepsAtOnce<Element>;
}

template <typename T>
inline constexpr int kTileColumns = kTileVectors * kWidth<T>;

template <typename T>
constexpr int64_t padded_columns(int64_t columns) {
  return (columns + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
}
// The last panel is only as wide as it needs to be.
template <typename T>
CHARLM_INLINE int64_t panel_width(int64_t columns, int64_t first) {
  const int64_t left = padded_columns<T>(columns - first);
  return left < kTileColumns<T> ? left : kTileColumns<T>;
}

template <typename T>
CHARLM_INLINE Vec<T> multiply_add(Vec<T> sum, T a, Vec<T> b) {
  return sum + a * b;
}

// Elements as the lanes of vectors.
template <typename Element>
CHARLM_INLINE const SumOf<Element>* lanes_of(const Element* elements) {
  return reinterpret_cast<const SumOf<Element>*>(elements);
}
template <typename Element>
CHARLM_INLINE SumOf<Element>* lanes_of(Element* elements) {
  return reinterpret_cast<SumOf<Element>*>(elements);
}

// `rows` <= kRows rows of C from a strip of A and one panel of B, which has kVectors vectors of columns, the last with
// `last_lanes`.
template <typename Element, int kRows, int kVectors, typename T = SumOf<Element>>
__attribute__((noinline)) void multiply_tile(int64_t rows, int64_t steps, const Element* a, const Element* b,
                                             int64_t b_stride, T* c, int64_t c_stride, int last_lanes,
                                             bool accumulate) {
  Vec<T> sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < steps; ++k) {
    Vec<T> columns[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) columns[j] = load(lanes_of(b + j * kWidth<T>));
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] = multiply_add(sum[i][j], a[i], columns[j]);
    }
    a += kTileRows;
    b += b_stride;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    if (i >= rows) break;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      T* out = c + i * c_stride + j * kWidth<T>;
      const int lanes = j == kVectors - 1 ? last_lanes : kWidth<T>;
      if (accumulate) sum[i][j] += load_lanes<T>(out, lanes, 0);
      store_lanes<T>(out, sum[i][j], lanes);
    }
  }
}

// The right operand: panels of so many steps, of which a product may walk along a part.
template <typename Element>
struct Panels {
  const Element* data;
  int64_t steps;
  int64_t row_stride = 0;  // not 0: in place of panels, rows that are padded to whole vectors
};

// A strip of up to kTileRows rows of A times steps [first_step, first_step + steps) of all panels of B.
template <typename Element, typename T = SumOf<Element>>
void multiply_strip(int64_t rows, int64_t columns, int64_t first_step, int64_t steps, const Element* a,
                    const Panels<Element>& b, T* c, int64_t c_stride, bool accumulate) {
  const bool packed = b.row_stride == 0;
  const Element* panel = b.data;
  for (int64_t first = 0; first < columns; first += kTileColumns<T>) {
    const int64_t width = panel_width<T>(columns, first), left = columns - first < width ? columns - first : width;
    const bool narrow = width == kWidth<T>;
    static_assert(kTileVectors == 2);
    const auto tile = rows <= kLowTileRows
                          ? narrow ? multiply_tile<Element, kLowTileRows, 1> : multiply_tile<Element, kLowTileRows, 2>
                      : narrow ? multiply_tile<Element, kTileRows, 1>
                               : multiply_tile<Element, kTileRows, 2>;
    const int64_t stride = packed ? width : b.row_stride;
    tile(rows, steps, a, panel + first_step * stride, stride, c + first, c_stride, (int)(left - (width - kWidth<T>)),
         accumulate);
    panel += packed ? b.steps * width : width;
  }
}

// The elements that packing finds: those of the first `count` values along the inner dimension; one for each of `count`
// lanes, which are side by side; and a single one. Of the last two, `steps` values are left along that dimension.
template <typename T, typename S>
CHARLM_INLINE Vec<T> along(T, const S* from, int count) {
  return load_as(from, count);
}
template <typename T, typename S>
CHARLM_INLINE Vec<T> across(T, const S* from, int64_t /*depth_stride*/, int64_t /*steps*/, int count) {
  return load_as(from, count);
}
template <typename T, typename S>
CHARLM_INLINE T single(T, const S* from, int64_t /*depth_stride*/, int64_t /*steps*/) {
  return (T)to_compute(*from);
}

// A tile of whole vectors transposed: out[step * width + lane] for so many values along the inner dimension and `count`
// lanes, of which those from `lanes` on are 0. Not inlined: among loops GCC would keep the addresses of all its rows.
template <typename S, typename Element>
__attribute__((noinline)) void pack_transposed(const S* from, int64_t lane_stride, int values, int64_t lanes,
                                               int64_t width, int count, Element* out) {
  using T = SumOf<Element>;
  constexpr int kLanes = kWidth<T>;
  Vec<T> tile[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    tile[i] = i < lanes ? along(Element{}, from, values) : Vec<T>{};
    __builtin_prefetch(from + kLanes * lane_stride);  // the lanes that come next
    from += lane_stride;
  }
  transpose_spans<1, T>(tile);
  for (int i = 0; i < kLanes; ++i) {
    if (kSteps<Element> * i >= values) break;
    store_lanes<T>(lanes_of(out + i * width), tile[i], count);
  }
}

// Rows that are fetched while others are packed.
constexpr int64_t kRowsAhead = 8;

// What `lanes` vectors of the inner dimension hold, packed step by step: out[step * width + lane], 0 past the last
// lane. Value k of a lane is from[k * depth_stride + lane * lane_stride].
template <typename S, typename Element>
void pack_panel(const S* from, int64_t depth_stride, int64_t lane_stride, int64_t depth, int64_t lanes, int64_t width,
                Element* out) {
  using T = SumOf<Element>;
  constexpr int64_t kStep = kSteps<Element>, kLanes = kWidth<T>;
  const auto up_to = [](int64_t most, int64_t left) { return (int)(left < most ? left < 0 ? 0 : left : most); };
  if (lane_stride == 1) {
    for (int64_t k = 0; k < depth; k += kStep, from += kStep * depth_stride, out += width) {
      for (int64_t lane = 0; lane < width; lane += kLanes) {
        __builtin_prefetch(from + kRowsAhead * depth_stride + lane);
        const Vec<T> elements = across(Element{}, from + lane, depth_stride, depth - k, up_to(kLanes, lanes - lane));
        store_lanes<T>(lanes_of(out + lane), elements, up_to(kLanes, width - lane));
      }
    }
  } else if (depth_stride == 1) {
    // Along a few rows at a time: the processor fetches ahead in so many.
    for (int64_t lane = 0; lane < width; lane += kLanes) {
      for (int64_t k = 0; k < depth; k += kStep * kLanes) {
        pack_transposed(from + k + lane * lane_stride, lane_stride, up_to(kStep * kLanes, depth - k), lanes - lane,
                        width, up_to(kLanes, width - lane), out + k / kStep * width + lane);
      }
    }
  } else {
    for (int64_t k = 0; k < depth; k += kStep, from += kStep * depth_stride, out += width) {
      for (int64_t lane = 0; lane < width; ++lane) {
        out[lane] = lane < lanes ? single(Element{}, from + lane * lane_stride, depth_stride, depth - k) : Element{};
      }
    }
  }
}

// Up to kStripRows rows of A, given by strides.
template <typename S, typename Element>
void pack_strip(const S* a, int64_t depth_stride, int64_t row_stride, int64_t depth, int64_t rows, Element* out) {
  pack_panel(a, depth_stride, row_stride, depth, rows, kTileRows, out);
}

// B (depth, columns), given by strides, in panels: padded_columns(columns) * padded_steps(depth) elements. What lies in
// rows is packed a few rows at a time, into all panels: a row of one panel is too short for the processor to fetch
// ahead.
template <typename S, typename Element>
void pack_panels(const S* b, int64_t row_stride, int64_t column_stride, int64_t depth, int64_t columns, Element* out) {
  constexpr int64_t kRowsAtOnce = 4 * kSteps<Element>;
  const int64_t filled = (depth + kSteps<Element> - 1) / kSteps<Element>, steps = padded_steps<Element>(depth);
  const int64_t rows = column_stride == 1 ? kRowsAtOnce : depth;
  for (int64_t k = 0; k < depth; k += rows) {
    const int64_t count = depth - k < rows ? depth - k : rows;
    for (int64_t first = 0; first < columns; first += kTileColumns<SumOf<Element>>) {
      const int64_t width = panel_width<SumOf<Element>>(columns, first);
      pack_panel(b + k * row_stride + first * column_stride, row_stride, column_stride, count,
                 columns - first < width ? columns - first : width, width,
                 out + first * steps + k / kSteps<Element> * width);
    }
  }
  for (int64_t first = 0; first < columns && filled < steps; first += kTileColumns<SumOf<Element>>) {
    const int64_t width = panel_width<SumOf<Element>>(columns, first);
    __builtin_memset(out + first * steps + filled * width, 0, (steps - filled) * width * (int64_t)sizeof(Element));
  }
}

// The left operand of a product, where it is.
template <typename T>
struct MatrixA {
  const T* data;
  int64_t row_stride, depth_stride;
};

// C = A B or C += A B; A is packed on the way, a strip that stays in the first-level cache at a time. The part of B
// that all strips are multiplied by, before the next, stays in the second-level cache.
template <typename T>
void gemm(int64_t rows, int64_t columns, int64_t depth, const MatrixA<T>& a, const Panels<T>& b, T* c, int64_t c_stride,
          bool accumulate) {
  constexpr int64_t kBlockSteps = 256;
  alignas(64) T strip[kTileRows * kBlockSteps];
  int64_t k = 0;
  do {  // also where there is no step: C = 0
    const int64_t steps = depth - k < kBlockSteps ? depth - k : kBlockSteps;
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const int64_t count = rows - row < kTileRows ? rows - row : kTileRows;
      pack_strip(a.data + row * a.row_stride + k * a.depth_stride, a.depth_stride, a.row_stride, steps, count, strip);
      multiply_strip(count, columns, k, steps, strip, b, c + row * c_stride, c_stride, accumulate || k > 0);
    }
    k += steps;
  } while (k < depth);
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
