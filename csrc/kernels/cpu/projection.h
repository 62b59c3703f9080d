// A dense layer on concatenated embeddings, computed per token instead of per example: sum_t P_t[x_t], P_t = E W_t^T.
//
// Outputs are cut into blocks. `embedded` has one row (1, E[x]) per table row, so that a bias is one more input of the
// first position.
#pragma once

#include "kernels/cpu/gemm.h"
#include "kernels/mlp.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {

template <typename T>
struct Projection {
  const MlpBatch<T>& batch;
  const Blocks& blocks;
  int64_t context_length, embedding_dim;
  const T* embedded;
  T* weight;            // rows of all blocks' chunks: [bias,] then T*D inputs, then what else the chunk holds
  T* weight_gradient;   // same layout
  int64_t weight_rows;  // rows of a chunk
  bool has_bias;

  int64_t table_rows() const { return batch.table_rows(context_length); }
  int64_t first_row(int64_t t) const { return batch.position_begin[t]; }
  int64_t rows(int64_t t) const { return batch.position_begin[t + 1] - batch.position_begin[t]; }
  bool bias_at(int64_t t) const { return has_bias && t == 0; }
  int64_t inputs(int64_t t) const { return embedding_dim + bias_at(t); }
  int64_t first_input(int64_t t) const { return bias_at(t) ? 0 : has_bias + t * embedding_dim; }
  const T* embedded_at(int64_t t) const { return embedded + first_row(t) * (1 + embedding_dim) + (bias_at(t) ? 0 : 1); }

  // Tables of one block.
  template <int N>
  void project(int64_t block, T* tables) const {
    const int64_t width = N * kWidth<T>;
    const T* chunk = weight + weight_rows * blocks.begin(block);
    T* out = tables + table_rows() * blocks.begin(block);
    for (int64_t t = 0; t < context_length; ++t) {
      multiply<N>(rows(t), inputs(t), Left<T, false>{embedded_at(t), 1 + embedding_dim}, chunk + first_input(t) * width,
                  out + first_row(t) * width, false);
    }
  }

  // Calls body(u, sum) with the sum of the table rows of each context in [begin, end).
  template <int N, typename Body>
  CHARLM_INLINE void gather(int64_t block, const T* tables, int64_t begin, int64_t end, const Body& body) const {
    const int64_t width = N * kWidth<T>;
    const T* in = tables + table_rows() * blocks.begin(block);
    for (int64_t u = begin; u < end; ++u) {
      const int32_t* row = batch.context_rows + u * context_length;
      Vec<T> sum[N];
      for (int n = 0; n < N; ++n) sum[n] = load(in + row[0] * width + n * kWidth<T>);
      for (int64_t t = 1; t < context_length; ++t) {
        for (int n = 0; n < N; ++n) sum[n] += load(in + row[t] * width + n * kWidth<T>);
      }
      body(u, sum);
    }
  }

  // Adds the gradient of one context's sum to its table rows.
  template <int N>
  CHARLM_INLINE void scatter(T* chunk, int64_t u, const Vec<T> (&gradient)[N]) const {
    const int32_t* row = batch.context_rows + u * context_length;
    for (int64_t t = 0; t < context_length; ++t) {
      T* out = chunk + row[t] * (N * kWidth<T>);
      for (int n = 0; n < N; ++n) store(out + n * kWidth<T>, load(out + n * kWidth<T>) + gradient[n]);
    }
  }

  // d weight of one block, from the gradient of the tables.
  template <int N>
  void backward_weight(int64_t block, const T* tables_gradient) const {
    const int64_t width = N * kWidth<T>;
    const T* in = tables_gradient + table_rows() * blocks.begin(block);
    T* out = weight_gradient + weight_rows * blocks.begin(block);
    for (int64_t t = 0; t < context_length; ++t) {
      multiply<N>(inputs(t), rows(t), Left<T, true>{embedded_at(t), 1 + embedding_dim}, in + first_row(t) * width,
                  out + first_input(t) * width, false);
    }
  }

  // d embedding of each table row (P, D), added to `out`, for the position t.
  void backward_embedding(int64_t t, const T* tables_gradient, T* out) const {
    multiply_transposed<T>(rows(t), embedding_dim, blocks, {tables_gradient, table_rows(), first_row(t)},
                           {weight, weight_rows, has_bias + t * embedding_dim}, out + first_row(t) * embedding_dim,
                           embedding_dim);
  }
};

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
