#include "kernels/embedding_linear.h"

#include "kernels/cpu/activation.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/gemm.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {
namespace {

// Columns a row kernel works on at once: enough independent chains to hide the latency of an activation.
constexpr int kGroupVectors = 4;

// A slice of dP is summed over this many rows, or over 2 U if those are more, before it is added to the total: sums over
// whole data sets then lose no more digits than a blocked matrix product.
constexpr int64_t kRowsPerPartialSum = 1024;

// An odd number of vectors, so that a column of a matrix does not fall into a few sets of the cache.
template <typename T>
int64_t stride(int64_t columns) {
  const int64_t vectors = padded_columns<T>(columns) / kWidth<T>;
  return (vectors + (vectors % 2 == 0)) * kWidth<T>;
}

template <typename T>
void pack(const T* matrix, int64_t row_stride, int64_t column_stride, int64_t depth, int64_t columns, T* packed) {
  pack_panels(matrix, row_stride, column_stride, depth, columns, packed);
}

// body(column, vectors, lanes of the last vector): groups of kGroupVectors, then vector by vector.
template <typename T, typename Group, typename Single>
CHARLM_INLINE void for_each_group(int64_t columns, const Group& group, const Single& single) {
  int64_t c = 0;
  for (; c + kGroupVectors * kWidth<T> <= columns; c += kGroupVectors * kWidth<T>) group(c);
  for (; c < columns; c += kWidth<T>) single(c, columns - c < kWidth<T> ? (int)(columns - c) : kWidth<T>);
}

// out[i] = E[tokens[i]] for i in [0, count), `per_row` of them side by side in each row of out.
template <typename T>
void gather_embeddings(const EmbeddingLinear<T>& p, const int32_t* tokens, int64_t rows, int64_t per_row, T* out,
                       int64_t out_stride) {
  with_storage<T>(p.embedding.data, p.embedding.storage, [&](const auto* data) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < per_row; ++t) {
        const auto* row = data + tokens[r * per_row + t] * p.embedding.row_stride;
        T* to = out + r * out_stride + t * p.embedding_dim;
        pack_rows(row, 0, p.embedding.column_stride, 1, p.embedding_dim, to, 0);
      }
    }
  });
}

template <typename T>
T* output_row(const EmbeddingLinear<T>& p, int64_t row, T* scratch) {
  return is_direct<T>(p.output) ? static_cast<T*>(p.output.data) + row * p.output.row_stride : scratch;
}
template <typename T>
void write_output_row(const EmbeddingLinear<T>& p, int64_t row, const T* values) {
  if (is_direct<T>(p.output)) return;
  with_storage<T>(p.output.data, p.output.storage, [&](auto* data) {
    unpack_rows(values, 0, 1, p.hidden_dim, data + row * p.output.row_stride, 0, 1);
  });
}

// The rows of a table that make up row `slot` of the batch.
template <typename T>
CHARLM_INLINE T* table_row(const ProjectedTable<T>& table, T* rows, int64_t row_stride, const int32_t* slot,
                           int64_t position) {
  return rows + (table.first_pair[position] + slot[position]) * row_stride;
}

template <typename T, int kVectors>
CHARLM_INLINE void sum_table_rows(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, const int32_t* slot,
                                  int64_t column, Vec<T>* sum) {
  for (int64_t t = 0; t < p.context_length; ++t) {
    const T* row = table_row(table, table.table, table.stride, slot, t) + column;
    for (int j = 0; j < kVectors; ++j) {
      const Vec<T> value = load(row + j * kWidth<T>);
      sum[j] = t == 0 ? value : sum[j] + value;
    }
  }
}

template <typename T>
void project(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, int64_t first, int64_t last, bool multiply) {
  const int64_t dim = p.embedding_dim, hidden = p.hidden_dim;
  T* embeddings = table.embeddings + first * dim;
  gather_embeddings(p, table.pair_token + first, last - first, 1, embeddings, dim);
  if (!multiply) return;
  for (int64_t t = 0; t < p.context_length; ++t) {
    const int64_t begin = first > table.first_pair[t] ? first : table.first_pair[t];
    const int64_t end = last < table.first_pair[t + 1] ? last : table.first_pair[t + 1];
    if (begin >= end) continue;
    const T* weight = p.packed_transposed + t * dim * padded_columns<T>(hidden);
    T* out = table.table + begin * table.stride;
    gemm<T>(end - begin, hidden, dim, {table.embeddings + begin * dim, dim, 1}, {weight}, out, table.stride, false);
    if (t > 0 || p.bias == nullptr) continue;
    for (int64_t u = 0; u < end - begin; ++u) {
      for (int64_t h = 0; h < hidden; ++h) out[u * table.stride + h] += p.bias[h];
    }
  }
}

template <typename T, Activation kActivation, int kVectors>
CHARLM_INLINE void forward_vectors(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, const int32_t* slot,
                                   int64_t column, int last_lanes, T* out) {
  Vec<T> sum[kVectors];
  sum_table_rows<T, kVectors>(p, table, slot, column, sum);
  for (int j = 0; j < kVectors; ++j) {
    const int lanes = j == kVectors - 1 ? last_lanes : kWidth<T>;
    store_lanes<T>(out + column + j * kWidth<T>, activate<kActivation, T>(sum[j]), lanes);
  }
}

template <typename T>
void project_forward(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, int64_t first, int64_t last,
                     T* scratch) {
  with_activation(p.activation, [&](auto tag) {
    constexpr Activation kActivation = decltype(tag)::value;
    for (int64_t n = first; n < last; ++n) {
      const int32_t* slot = table.slots + n * p.context_length;
      T* out = output_row(p, n, scratch);
      for_each_group<T>(
          p.hidden_dim,
          [&](int64_t c) { forward_vectors<T, kActivation, kGroupVectors>(p, table, slot, c, kWidth<T>, out); },
          [&](int64_t c, int lanes) { forward_vectors<T, kActivation, 1>(p, table, slot, c, lanes, out); });
      write_output_row(p, n, out);
    }
  });
}

template <typename T, Activation kActivation, int kVectors>
CHARLM_INLINE void scatter_vectors(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, const int32_t* slot,
                                   int64_t column, int last_lanes, const T* gradient, const T* output, T* partial) {
  Vec<T> value[kVectors] = {}, dpre[kVectors];
  if constexpr (derivative_uses_input(kActivation)) sum_table_rows<T, kVectors>(p, table, slot, column, value);
  for (int j = 0; j < kVectors; ++j) {
    const int lanes = j == kVectors - 1 ? last_lanes : kWidth<T>;
    if constexpr (derivative_uses_output(kActivation)) value[j] = load_lanes<T>(output + j * kWidth<T>, lanes, 0);
    dpre[j] = activate_backward<kActivation, T>(load_lanes<T>(gradient + j * kWidth<T>, lanes, 0), value[j]);
  }
  for (int64_t t = 0; t < p.context_length; ++t) {
    T* row = table_row(table, partial, kSliceColumns, slot, t);
    for (int j = 0; j < kVectors; ++j) store(row + j * kWidth<T>, load(row + j * kWidth<T>) + dpre[j]);
  }
}

// total = partial, or total += partial; partial = 0.
template <typename T>
void flush_slice(int64_t pairs, int64_t columns, T* partial, bool is_first, T* total, int64_t total_stride) {
  for (int64_t u = 0; u < pairs; ++u) {
    for (int64_t c = 0; c < columns; c += kWidth<T>) {
      T* from = partial + u * kSliceColumns + c;
      T* to = total + u * total_stride + c;
      store(to, is_first ? load(from) : load(to) + load(from));
      store(from, Vec<T>{});
    }
  }
}

template <typename T>
void project_scatter(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, int64_t first, int64_t last,
                     T* scratch) {
  const int64_t pairs = table.first_pair[p.context_length];
  const int64_t interval = 2 * pairs > kRowsPerPartialSum ? 2 * pairs : kRowsPerPartialSum;
  T* partial = scratch;
  T* gradient_row = scratch + pairs * kSliceColumns;
  T* value_row = gradient_row + kSliceColumns;
  for (int64_t i = 0; i < pairs * kSliceColumns; i += kWidth<T>) store(partial + i, Vec<T>{});
  with_activation(p.activation, [&](auto tag) {
    constexpr Activation kActivation = decltype(tag)::value;
    for (int64_t slice = first; slice < last; ++slice) {
      const int64_t begin = slice * kSliceColumns;
      const int64_t columns = p.hidden_dim - begin < kSliceColumns ? p.hidden_dim - begin : kSliceColumns;
      for (int64_t done = 0; done < p.rows; done += interval) {
        const int64_t end = p.rows - done < interval ? p.rows : done + interval;
        for (int64_t n = done; n < end; ++n) {
          const int32_t* slot = table.slots + n * p.context_length;
          const T* gradient = read_row(p.grad_output, n, begin, columns, gradient_row);
          const T* output = gradient;  // read only where the derivative uses it
          if constexpr (derivative_uses_output(kActivation)) output = read_row(p.output, n, begin, columns, value_row);
          for_each_group<T>(
              columns,
              [&](int64_t c) {
                scatter_vectors<T, kActivation, kGroupVectors>(p, table, slot, begin + c, kWidth<T>, gradient + c,
                                                               output + c, partial + c);
              },
              [&](int64_t c, int lanes) {
                scatter_vectors<T, kActivation, 1>(p, table, slot, begin + c, lanes, gradient + c, output + c,
                                                   partial + c);
              });
        }
        flush_slice(pairs, columns, partial, done == 0, table.table_gradient + begin, table.stride);
      }
    }
  });
}

template <typename T>
void project_weight_gradient(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, int64_t first, int64_t last,
                             T* scratch) {
  const int64_t dim = p.embedding_dim;
  const int64_t slices = (p.hidden_dim + kSliceColumns - 1) / kSliceColumns;
  for (int64_t item = first; item < last; ++item) {
    const int64_t t = item / slices, begin = item % slices * kSliceColumns;
    const int64_t columns = p.hidden_dim - begin < kSliceColumns ? p.hidden_dim - begin : kSliceColumns;
    const int64_t first_pair = table.first_pair[t], pairs = table.first_pair[t + 1] - first_pair;
    const T* gradient = table.table_gradient + first_pair * table.stride + begin;
    if (p.weight_gradient != nullptr) {
      gemm<T>(dim, columns, pairs, {table.embeddings + first_pair * dim, 1, dim}, {gradient, table.stride}, scratch,
              kSliceColumns, false);
      T* out = p.weight_gradient + begin * p.context_length * dim + t * dim;
      for (int64_t c = 0; c < columns; ++c) {
        for (int64_t d = 0; d < dim; ++d) out[c * p.context_length * dim + d] = scratch[d * kSliceColumns + c];
      }
    }
    if (t == 0 && p.bias_gradient != nullptr) {
      T* out = p.bias_gradient + begin;
      for (int64_t c = 0; c < columns; ++c) out[c] = 0;
      for (int64_t u = 0; u < pairs; ++u) {
        for (int64_t c = 0; c < columns; ++c) out[c] += gradient[u * table.stride + c];
      }
    }
  }
}

template <typename T>
void project_embedding_gradient(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, int64_t position,
                                int64_t first, int64_t last, T* scratch) {
  const int64_t dim = p.embedding_dim, row_stride = stride<T>(dim);
  const T* weight = p.packed_weight + position * p.hidden_dim * padded_columns<T>(dim);
  for (int64_t begin = first; begin < last; begin += kGatherTileRows) {
    const int64_t rows = last - begin < kGatherTileRows ? last - begin : kGatherTileRows;
    gemm<T>(rows, dim, p.hidden_dim, {table.table_gradient + begin * table.stride, table.stride, 1}, {weight}, scratch,
            row_stride, false);
    for (int64_t r = 0; r < rows; ++r) {
      T* out = p.embedding_gradient + table.pair_token[begin + r] * dim;
      for (int64_t d = 0; d < dim; ++d) out[d] += scratch[r * row_stride + d];
    }
  }
}

template <typename T>
void gather_forward(const EmbeddingLinear<T>& p, int64_t first, int64_t last, T* scratch) {
  const int64_t width = p.context_length * p.embedding_dim, hidden = p.hidden_dim;
  const int64_t input_stride = stride<T>(width), hidden_stride = stride<T>(hidden);
  T* input = scratch;
  T* pre = scratch + kGatherTileRows * input_stride;
  with_activation(p.activation, [&](auto tag) {
    for (int64_t begin = first; begin < last; begin += kGatherTileRows) {
      const int64_t rows = last - begin < kGatherTileRows ? last - begin : kGatherTileRows;
      gather_embeddings(p, p.tokens + begin * p.context_length, rows, p.context_length, input, input_stride);
      gemm<T>(rows, hidden, width, {input, input_stride, 1}, {p.packed_transposed}, pre, hidden_stride, false);
      for (int64_t r = 0; r < rows; ++r) {
        T* values = pre + r * hidden_stride;
        T* out = output_row(p, begin + r, values);
        for_each_vector<T>(hidden, [&](int64_t h, int lanes) {
          Vec<T> x = load(values + h);
          if (p.bias != nullptr) x = x + load_lanes<T>(p.bias + h, lanes, 0);
          store_lanes<T>(out + h, activate<decltype(tag)::value, T>(x), lanes);
        });
        write_output_row(p, begin + r, out);
      }
    }
  });
}

template <typename T>
void gather_gradient(const EmbeddingLinear<T>& p, const GatheredChunk<T>& chunk, int64_t first, int64_t last,
                     T* scratch) {
  const int64_t width = p.context_length * p.embedding_dim, hidden = p.hidden_dim;
  T* value_row = scratch + stride<T>(hidden);
  T* input = chunk.input + first * chunk.input_stride;
  T* dpre = chunk.gradient + first * chunk.hidden_stride;
  gather_embeddings(p, p.tokens + (chunk.first_row + first) * p.context_length, last - first, p.context_length, input,
                    chunk.input_stride);
  with_activation(p.activation, [&](auto tag) {
    constexpr Activation kActivation = decltype(tag)::value;
    if constexpr (derivative_uses_input(kActivation)) {
      gemm<T>(last - first, hidden, width, {input, chunk.input_stride, 1}, {p.packed_transposed}, dpre,
              chunk.hidden_stride, false);
    }
    for (int64_t r = 0; r < last - first; ++r, dpre += chunk.hidden_stride) {
      const int64_t row = chunk.first_row + first + r;
      const T* gradient = read_row(p.grad_output, row, 0, hidden, scratch);
      const T* output = gradient;  // read only where the derivative uses it
      if constexpr (derivative_uses_output(kActivation)) output = read_row(p.output, row, 0, hidden, value_row);
      for_each_vector<T>(hidden, [&](int64_t h, int lanes) {
        Vec<T> value = {};
        if constexpr (derivative_uses_output(kActivation)) value = load_lanes<T>(output + h, lanes, 0);
        if constexpr (derivative_uses_input(kActivation)) {
          value = load(dpre + h);
          if (p.bias != nullptr) value = value + load_lanes<T>(p.bias + h, lanes, 0);
        }
        store(dpre + h, activate_backward<kActivation, T>(load_lanes<T>(gradient + h, lanes, 0), value));
      });
    }
  });
}

template <typename T>
void gather_weight_gradient(const EmbeddingLinear<T>& p, const GatheredChunk<T>& chunk, int64_t first, int64_t last) {
  const int64_t width = p.context_length * p.embedding_dim;
  const bool accumulate = chunk.first_row > 0;
  if (p.weight_gradient != nullptr) {
    gemm<T>(last - first, width, chunk.rows, {chunk.gradient + first, 1, chunk.hidden_stride},
            {chunk.input, chunk.input_stride}, p.weight_gradient + first * width, width, accumulate);
  }
  if (p.bias_gradient != nullptr) {
    for (int64_t h = first; h < last; ++h) {
      T sum = 0;
      for (int64_t r = 0; r < chunk.rows; ++r) sum += chunk.gradient[r * chunk.hidden_stride + h];
      p.bias_gradient[h] = accumulate ? p.bias_gradient[h] + sum : sum;
    }
  }
}

template <typename T>
void gather_input_gradient(const EmbeddingLinear<T>& p, const GatheredChunk<T>& chunk, int64_t first, int64_t last) {
  gemm<T>(last - first, p.context_length * p.embedding_dim, p.hidden_dim,
          {chunk.gradient + first * chunk.hidden_stride, chunk.hidden_stride, 1}, {p.packed_weight},
          chunk.input_gradient + first * chunk.input_stride, chunk.input_stride, false);
}

template <typename T>
void gather_scatter(const EmbeddingLinear<T>& p, const GatheredChunk<T>& chunk, int64_t first, int64_t last) {
  for (int64_t r = 0; r < chunk.rows; ++r) {
    const int32_t* token = p.tokens + (chunk.first_row + r) * p.context_length;
    for (int64_t t = 0; t < p.context_length; ++t) {
      const T* from = chunk.input_gradient + r * chunk.input_stride + t * p.embedding_dim;
      T* to = p.embedding_gradient + token[t] * p.embedding_dim;
      for (int64_t d = first; d < last; ++d) to[d] += from[d];
    }
  }
}

template <typename T>
EmbeddingLinearKernels<T> table() {
  return {stride<T>,
          padded_columns<T>,
          pack<T>,
          project<T>,
          project_forward<T>,
          project_scatter<T>,
          project_weight_gradient<T>,
          project_embedding_gradient<T>,
          gather_forward<T>,
          gather_gradient<T>,
          gather_weight_gradient<T>,
          gather_input_gradient<T>,
          gather_scatter<T>};
}

}  // namespace

template <>
EmbeddingLinearKernels<float> kernels() {
  return table<float>();
}
template <>
EmbeddingLinearKernels<double> kernels() {
  return table<double>();
}

}  // namespace charlm::cpu::CHARLM_ISA_NAMESPACE
