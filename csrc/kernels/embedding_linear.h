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

#include "kernels/device.h"
#include "kernels/device_library.h"
#include "kernels/isa.h"
#include "kernels/storage.h"
#include "kernels/token_index.h"

namespace charlm {

enum class Activation : int64_t { kTanh = 0, kRelu = 1, kGelu = 2, kSilu = 3, kNone = 4 };
inline constexpr int64_t kActivations = 5;

// Whether the derivative needs the output of the activation, its input, or neither.
CHARLM_HOST_DEVICE constexpr bool derivative_uses_output(Activation activation) {
  return activation == Activation::kTanh || activation == Activation::kRelu;
}
CHARLM_HOST_DEVICE constexpr bool derivative_uses_input(Activation activation) {
  return activation == Activation::kGelu || activation == Activation::kSilu;
}

template <typename T>  // the type computed in: float for all storage types but float64
struct EmbeddingLinear {
  int64_t rows = 0;            // N
  int64_t context_length = 0;  // T
  int64_t vocab_size = 0;      // V
  int64_t embedding_dim = 0;   // D
  int64_t hidden_dim = 0;      // H
  Activation activation = Activation::kTanh;
  const int32_t* tokens = nullptr;  // (N, T), all in [0, V)
  StoredMatrix embedding;           // (V, D)
  const T* weight = nullptr;        // (H, T*D)
  const T* bias = nullptr;          // (H,), null: none
  StoredMatrix output;              // (N, H), written by forward, read by backward
  StoredMatrix grad_output;         // (N, H)
  // (N, T, D), the embedding of each token, where backward is not to read the table, which may have changed: written by
  // forward, null where it is not to; for backward it is what `embedding` is.
  void* picked_rows = nullptr;
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
  const int32_t* numbers = nullptr;     // (N, T): row n's pair at position t is first_pair[t] + numbers[n * T + t]
  int64_t stride = 0;                   // of the two tables
  int64_t embedding_stride = 0;         // of embeddings
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

// "project" where it costs less, in multiply-adds per hidden unit, forward and backward together. A pair costs its D
// products and a row of P and dP, which are written and read several times; a gathered token costs its D products and
// what is done to it more than a token of "project". Fitted to times of both at N from 8 to 4096, V from 27 to 50,000,
// D from 2 to 64, H from 100 to 512. Counting the pairs U takes V steps per position, so where V is beyond
// kLargeVocabulary N nobody counts.
inline constexpr int64_t kGatheredToken = 22;
inline constexpr int64_t kCachedTableRow = 60;
inline constexpr int64_t kTableRow = 180;
inline constexpr int64_t kCachedTableValues = 1 << 17;
inline constexpr int64_t kLargeVocabulary = 16;
inline bool may_project(int64_t rows, int64_t vocab_size) { return rows == 0 || vocab_size <= kLargeVocabulary * rows; }
inline bool project_is_cheaper(int64_t rows, int64_t context_length, int64_t embedding_dim, int64_t hidden_dim,
                               int64_t pairs) {
  const int64_t table_row = pairs * hidden_dim <= kCachedTableValues ? kCachedTableRow : kTableRow;
  return pairs * (embedding_dim + table_row) <= rows * context_length * (embedding_dim + kGatheredToken);
}

// Columns of dP are cut at multiples of this, which every group of vectors that the kernels work on divides: how a
// column is computed, to the last bit, then depends on H alone.
inline constexpr int64_t kColumnGroup = 64;
// Columns of dP that a thread adds to at a time: what keeps its partial sums in the second-level cache.
inline int64_t scatter_columns(int64_t pairs) {
  const int64_t groups = (1 << 17) / kColumnGroup / (pairs > 0 ? pairs : 1);
  return (groups > 0 ? groups : 1) * kColumnGroup;
}
// Rows that "gather" multiplies at a time: a tile of embeddings stays in the second-level cache. The product's tiles,
// of 14 rows with AVX-512 and of 6 with AVX2, divide them.
inline constexpr int64_t kGatherTileRows = 42;

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
  // Rows [first, last) of output. scratch: stride(H); offsets: T.
  void (*project_forward)(const EmbeddingLinear<T>& problem, const ProjectedTable<T>& table, int64_t first,
                          int64_t last, T* scratch, int64_t* offsets);
  // Columns [first, last) of dP; first is a multiple of kColumnGroup. scratch: (U + 2) * (last - first, rounded up to
  // kColumnGroup); offsets: 2 T.
  void (*project_scatter)(const EmbeddingLinear<T>& problem, const ProjectedTable<T>& table, int64_t first,
                          int64_t last, T* scratch, int64_t* offsets);
  // Hidden units [first, last) of dW and dbias; first is a multiple of the vector width.
  void (*project_weight_gradient)(const EmbeddingLinear<T>& problem, const ProjectedTable<T>& table, int64_t first,
                                  int64_t last);
  // Adds what the pairs [first, last) of one position give to dE. scratch: kGatherTileRows * stride(D).
  void (*project_embedding_gradient)(const EmbeddingLinear<T>& problem, const ProjectedTable<T>& table,
                                     int64_t position, int64_t first, int64_t last, T* scratch);

  // "gather". Rows [first, last) of output. scratch: kGatherTileRows * (stride(T*D) + stride(H)).
  void (*gather_forward)(const EmbeddingLinear<T>& problem, int64_t first, int64_t last, T* scratch);
  // Rows [first, last) of a chunk: input and gradient. scratch: 2 * stride(H).
  void (*gather_gradient)(const EmbeddingLinear<T>& problem, const GatheredChunk<T>& chunk, int64_t first, int64_t last,
                          T* scratch);
  // Adds to hidden units [first, last) of dW and dbias; the first chunk sets them. first is a multiple of the vector
  // width.
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

// All of it, the cheaper way. Return whether that was "project".
template <typename T>
bool embedding_linear_forward(const EmbeddingLinear<T>& problem);
template <typename T>
bool embedding_linear_backward(const EmbeddingLinear<T>& problem);
}  // namespace cpu

// On a GPU an id outside [0, V) makes the output of its row NaN, and its row adds nothing to any gradient. Everything
// below is memory of the device; nothing waits for it.
namespace cuda {

struct EmbeddingLinearCall {
  TokenIds ids;            // (N, T)
  int64_t vocab_size = 0;  // V
  int64_t embedding_dim = 0;
  int64_t hidden_dim = 0;
  Activation activation = Activation::kTanh;
  Storage storage = Storage::kFloat32;  // of all that follow, which are contiguous
  const void* embedding = nullptr;      // (V, D); null where backward has picked_rows
  const void* weight = nullptr;         // (H, T*D)
  const void* bias = nullptr;           // (H,), null: none
  void* output = nullptr;               // (N, H), written by forward, read by backward
  const void* grad_output = nullptr;    // (N, H)
  // (N, T, D), the embedding of each id, where backward is not to read the table, which may have changed: written by a
  // forward that does not project, and read by backward.
  void* picked_rows = nullptr;
  void* embedding_gradient = nullptr;  // (V, D), like the next two null where not wanted
  void* weight_gradient = nullptr;     // (H, T*D)
  void* bias_gradient = nullptr;       // (H,)
};

// "project" by shape alone, as nothing may wait to count the pairs that occur: the table P of all V*T pairs has fewer
// rows than the batch has tokens, and its rows, read once a token, stay in a second-level cache of 40 MB or more.
inline constexpr int64_t kProjectedTableBytes = 16ll << 20;
bool embedding_linear_projects(const EmbeddingLinearCall& call);

Error embedding_linear_forward(const EmbeddingLinearCall& call, DeviceLibrary& library, Stream stream);
Error embedding_linear_backward(const EmbeddingLinearCall& call, DeviceLibrary& library, Stream stream);

}  // namespace cuda

}  // namespace charlm
