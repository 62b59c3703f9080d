// A dense layer on concatenated embeddings, computed per token instead of per example: sum_t P_t[x_t], P_t = E W_t^T.
//
// Everything here is about one block of the layer's outputs, N vectors wide: its weights, its tables (one row per table
// row of the batch) and their gradients are contiguous rows of that width. `embedded` has one row (1, E[x]) per table
// row, so that a bias is one more input of the first position.
#pragma once

#include "kernels/batch.h"
#include "kernels/blocks.h"
#include "kernels/cpu/block_gemm.h"
#include "kernels/cpu/transpose.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

template <typename T>
struct Projection {
  const ContextBatch<T>& batch;
  int64_t context_length;
  const Blocks& dims;  // of the embedding
  const T* embedded;   // (P, 1 + D)
  bool has_bias;       // rows of weights: [bias,] then the D inputs of each position

  int64_t first_row(int64_t t) const { return batch.position_begin[t]; }
  int64_t rows(int64_t t) const { return batch.position_begin[t + 1] - batch.position_begin[t]; }
  bool bias_at(int64_t t) const { return has_bias && t == 0; }
  int64_t inputs(int64_t t) const { return dims.size + bias_at(t); }
  int64_t first_input(int64_t t) const { return bias_at(t) ? 0 : has_bias + t * dims.size; }
  const T* embedded_at(int64_t t) const { return embedded + first_row(t) * (1 + dims.size) + (bias_at(t) ? 0 : 1); }

  template <int N>
  void project(const T* weight, T* tables) const {
    constexpr int64_t kRow = N * kWidth<T>;
    for (int64_t t = 0; t < context_length; ++t) {
      multiply<N>(rows(t), inputs(t), Left<T, false>{embedded_at(t), 1 + dims.size}, weight + first_input(t) * kRow,
                  tables + first_row(t) * kRow, false);
    }
  }

  // Calls body(sum) with the sum of the table rows of each context in [begin, end).
  template <int N, typename Body>
  CHARLM_INLINE void gather(const T* tables, int64_t begin, int64_t end, const Body& body) const {
    constexpr int64_t kRow = N * kWidth<T>;
    for (int64_t u = begin; u < end; ++u) {
      const int32_t* row = batch.context_rows + u * context_length;
      Vec<T> sum[N];
      for (int n = 0; n < N; ++n) sum[n] = load(tables + row[0] * kRow + n * kWidth<T>);
      for (int64_t t = 1; t < context_length; ++t) {
        for (int n = 0; n < N; ++n) sum[n] += load(tables + row[t] * kRow + n * kWidth<T>);
      }
      body(sum);
    }
  }

  // Adds the gradient of the sum of context u to its table rows.
  template <int N>
  CHARLM_INLINE void scatter(int64_t u, const Vec<T> (&gradient)[N], T* tables_gradient) const {
    const int32_t* row = batch.context_rows + u * context_length;
    for (int64_t t = 0; t < context_length; ++t) {
      T* out = tables_gradient + row[t] * (N * kWidth<T>);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) store(out + n * kWidth<T>, load(out + n * kWidth<T>) + gradient[n]);
    }
  }

  // d weight (+)= from the gradient of the tables.
  template <int N>
  void backward_weight(const T* tables_gradient, T* weight_gradient, bool accumulate) const {
    constexpr int64_t kRow = N * kWidth<T>;
    for (int64_t t = 0; t < context_length; ++t) {
      multiply<N>(inputs(t), rows(t), Left<T, true>{embedded_at(t), 1 + dims.size},
                  tables_gradient + first_row(t) * kRow, weight_gradient + first_input(t) * kRow, accumulate);
    }
  }

  // d embedding of the table rows of position t, (+)= in blocks of the embedding dimension: `width` outputs of this
  // block. `transposed` holds width * dims.padded() values.
  void backward_embedding(int64_t t, int64_t width, const T* weight, const T* tables_gradient, T* transposed, T* out,
                          bool accumulate) const {
    const int64_t table_rows = batch.table_rows(context_length);
    for (int64_t d = 0; d < dims.count; ++d) {
      transpose(weight + (has_bias + t * dims.size + dims.begin(d)) * width, width, dims.used(d), width, transposed,
                dims.width(d), dims.width(d));
      with_vectors<T>(dims.width(d), [&]<int N>() {
        multiply<N>(rows(t), width, Left<T, false>{tables_gradient + first_row(t) * width, width}, transposed,
                    out + table_rows * dims.begin(d) + first_row(t) * dims.width(d), accumulate);
      });
    }
  }
};

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
