// The first layer of a neural language model, and its gradients: T tokens embedded, concatenated, a dense layer.
//
//   pre[n] = bias + sum_t W_t E[x_nt]        W_t (H, D): columns t*D ... (t+1)*D of weight
//   output[n] = activation(pre[n])
//   dpre[n] = grad_output[n] * activation'   from output (tanh, relu) or from pre, computed again (gelu, silu)
//   dE[v] = sum over (n, t) with x_nt = v of W_t^T dpre[n]
//   dW_t = sum_n dpre[n] E[x_nt]^T           dbias = sum_n dpre[n]
//
// Two ways to compute it. "project" multiplies each of the U distinct pairs (t, v) that occur in the batch once, into a
// table P (U, H) of the rows W_t E[v] (the bias added to those of t = 0): pre[n] is a sum of T rows of P, and backward
// adds dpre[n] into T rows of dP, from which dE, dW and dbias follow, independent of the batch. "gather" copies the
// embeddings of a tile of rows and multiplies.
#pragma once

#include <stdint.h>

#include "kernels/isa.h"
#include "kernels/storage.h"

namespace charlm {

enum class Activation : int64_t { kTanh = 0, kRelu = 1, kGelu = 2, kSilu = 3, kNone = 4 };
inline constexpr int64_t kActivations = 5;

// Whether the derivative needs the output of the activation, its input, or neither.
constexpr bool derivative_uses_output(Activation activation) {
  return activation == Activation::kTanh || activation == Activation::kRelu;
}
constexpr bool derivative_uses_input(Activation activation) {
  return activation == Activation::kGelu || activation == Activation::kSilu;
}

template <typename T>  // the type computed in: float for all storage types but float64
struct EmbeddingLinear {
  int64_t rows = 0;            // N
  int64_t context_length = 0;  // T
  int64_t embedding_dim = 0;   // D
  int64_t hidden_dim = 0;      // H
  Activation activation = Activation::kTanh;
  const int32_t* tokens = nullptr;  // (N, T), all in [0, V)
  StoredMatrix embedding;           // (V, D)
  const T* bias = nullptr;          // (H,), null: none
  StoredMatrix output;              // (N, H), written by forward, read by backward
  StoredMatrix grad_output;         // (N, H)
  T* embedding_gradient = nullptr;  // (V, D), zero at first; like the next two null where not wanted
  T* weight_gradient = nullptr;     // (H, T*D)
  T* bias_gradient = nullptr;       // (H,)
  // W_t^T (D, H) for t = 0, 1, ... ("project"), weight^T (T*D, H) ("gather"); packed by the kernels' pack.
  const T* packed_transposed = nullptr;
  // W_t (H, D) for t = 0, 1, ... ("project"), weight (H, T*D) ("gather"); packed, for dE.
  const T* packed_weight = nullptr;
};

// The tables of "project". Pairs are numbered position by position.
template <typename T>
struct ProjectedTable {
  const int64_t* first_pair = nullptr;  // (T + 1,): pairs of position t are first_pair[t] ... first_pair[t + 1]
  const int32_t* pair_token = nullptr;  // (U,)
  const int32_t* slots = nullptr;       // (N, T): row n's pair at position t is first_pair[t] + slots[n * T + t]
  int64_t stride = 0;                   // of the two tables
  T* embeddings = nullptr;              // (U, D): E[pair_token[u]]
  T* table = nullptr;                   // P (U, H)
  T* table_gradient = nullptr;          // dP (U, H)
};

// The rows first_row ... first_row + rows of the batch that backward of "gather" works on at a time.
template <typename T>
struct GatheredChunk {
  int64_t first_row = 0, rows = 0;
  int64_t input_stride = 0, hidden_stride = 0;
  T* input = nullptr;           // (rows, T*D): the embeddings, concatenated
  T* gradient = nullptr;        // (rows, H): dpre
  T* input_gradient = nullptr;  // (rows, T*D)
};

// "project" where it takes fewer operations per hidden unit: U D multiply-adds for the table and N T additions that
// cost as much as kTableAddition multiply-adds each, against N T D multiply-adds. Counting U takes V steps per
// position, so where V is beyond kLargeVocabulary N nobody counts.
inline constexpr int64_t kTableAddition = 2;
inline constexpr int64_t kLargeVocabulary = 16;
inline bool may_project(int64_t rows, int64_t vocab_size) {
  return rows == 0 || vocab_size <= kLargeVocabulary * rows;
}
inline bool project_is_cheaper(int64_t rows, int64_t context_length, int64_t embedding_dim, int64_t pairs) {
  return pairs * embedding_dim + rows * context_length * kTableAddition <= rows * context_length * embedding_dim;
}

// Columns of dP that one thread owns: a slice of the table of a small vocabulary stays in the first-level cache.
inline constexpr int64_t kSliceColumns = 64;
// Rows that "gather" multiplies at a time: a tile of embeddings stays in the second-level cache.
inline constexpr int64_t kGatherTileRows = 48;

namespace cpu {
// Ranges are cut by the caller for its threads; however they are cut, the results are the same bits.
template <typename T>
struct EmbeddingLinearKernels {
  // Row stride, in values, of workspaces with so many columns: rows may be read a vector past their end.
  int64_t (*stride)(int64_t columns);
  // A (depth, columns) matrix given by strides, packed into depth * padded_columns(columns) values.
  int64_t (*padded_columns)(int64_t columns);
  void (*pack)(const T* matrix, int64_t row_stride, int64_t column_stride, int64_t depth, int64_t columns, T* packed);

  // "project". Pairs [first, last): their embeddings and, if multiply, their rows of the table.
  void (*project)(const EmbeddingLinear<T>& problem, const ProjectedTable<T>& table, int64_t first, int64_t last,
                  bool multiply);
  // Rows [first, last) of output. scratch: stride(H).
  void (*project_forward)(const EmbeddingLinear<T>& problem, const ProjectedTable<T>& table, int64_t first,
                          int64_t last, T* scratch);
  // Slices [first, last) of the columns of dP. scratch: (U + 2) * kSliceColumns.
  void (*project_scatter)(const EmbeddingLinear<T>& problem, const ProjectedTable<T>& table, int64_t first,
                          int64_t last, T* scratch);
  // dW and dbias. Item t * slices + s is slice s of W_t. scratch: D * kSliceColumns.
  void (*project_weight_gradient)(const EmbeddingLinear<T>& problem, const ProjectedTable<T>& table, int64_t first,
                                  int64_t last, T* scratch);
  // Adds what the pairs [first, last) of one position give to dE. scratch: kGatherTileRows * stride(D).
  void (*project_embedding_gradient)(const EmbeddingLinear<T>& problem, const ProjectedTable<T>& table,
                                     int64_t position, int64_t first, int64_t last, T* scratch);

  // "gather". Rows [first, last) of output. scratch: kGatherTileRows * (stride(T*D) + stride(H)).
  void (*gather_forward)(const EmbeddingLinear<T>& problem, int64_t first, int64_t last, T* scratch);
  // Rows [first, last) of a chunk: input and gradient. scratch: 2 * stride(H).
  void (*gather_gradient)(const EmbeddingLinear<T>& problem, const GatheredChunk<T>& chunk, int64_t first, int64_t last,
                          T* scratch);
  // Adds to hidden units [first, last) of dW and dbias; the first chunk sets them.
  void (*gather_weight_gradient)(const EmbeddingLinear<T>& problem, const GatheredChunk<T>& chunk, int64_t first,
                                 int64_t last);
  // Rows [first, last) of input_gradient.
  void (*gather_input_gradient)(const EmbeddingLinear<T>& problem, const GatheredChunk<T>& chunk, int64_t first,
                                int64_t last);
  // Adds input_gradient to columns [first, last) of dE.
  void (*gather_scatter)(const EmbeddingLinear<T>& problem, const GatheredChunk<T>& chunk, int64_t first, int64_t last);
};
CHARLM_DECLARE_KERNELS(EmbeddingLinearKernels<float>)
CHARLM_DECLARE_KERNELS(EmbeddingLinearKernels<double>)
}  // namespace cpu

}  // namespace charlm
