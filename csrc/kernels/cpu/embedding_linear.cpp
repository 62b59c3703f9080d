#include "kernels/embedding_linear.h"

#include "kernels/cpu/activation.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/gemm.h"

namespace charlm::cpu::CHARLM_ISA_NAMESPACE {
namespace {

// Columns a row kernel works on at once: enough independent chains to hide the latency of an activation.
constexpr int kGroupVectors = 4;

// A slice of dP is summed over this many rows, or over 2 U if those are more, before it is added to the total: sums
// over whole data sets then lose no more digits than a blocked matrix product.
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

// Asks for the row of a token that comes kPrefetchDistance tokens later: large tables are read at random.
constexpr int64_t kPrefetchDistance = 8;
template <typename S>
CHARLM_INLINE void prefetch_row(const S* row, int64_t columns) {
  for (int64_t c = 0; c < columns; c += 64 / (int64_t)sizeof(S)) __builtin_prefetch(row + c);
}

// out[i] = E[tokens[i]], `per_row` of them side by side in each row of out. Columns up to the next whole vector become
// 0: what the memory held before may be denormal numbers, which slow every operation on them a hundredfold.
template <typename T>
void gather_embeddings(const EmbeddingLinear<T>& p, const int32_t* tokens, int64_t rows, int64_t per_row, T* out,
                       int64_t out_stride) {
  const int64_t width = per_row * p.embedding_dim, padded = padded_columns<T>(width);
  with_storage<T>(p.embedding.data, p.embedding.storage, [&](const auto* data) {
    const int32_t* last_prefetching = tokens + rows * per_row - kPrefetchDistance;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < per_row; ++t, ++tokens) {
        if (tokens < last_prefetching) {
          prefetch_row(data + tokens[kPrefetchDistance] * p.embedding.row_stride, p.embedding_dim);
        }
        T* to = out + r * out_stride + t * p.embedding_dim;
        pack_rows(data + *tokens * p.embedding.row_stride, 0, p.embedding.column_stride, 1, p.embedding_dim, to, 0);
      }
      for (int64_t c = width; c < padded; ++c) out[r * out_stride + c] = 0;
    }
  });
}

template <typename T>
void write_output_row(const EmbeddingLinear<T>& p, int64_t row, const T* values) {
  with_storage<T>(p.output.data, p.output.storage,
                  [&](auto* data) { unpack_rows(values, 0, 1, p.hidden_dim, data + row * p.output.row_stride, 0, 1); });
}

// Where the rows of a table that make up a row of the batch start.
template <typename T>
CHARLM_INLINE void table_offsets(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, int64_t row,
                                 int64_t row_stride, int64_t* offsets) {
  const int32_t* number = table.numbers + row * p.context_length;
  for (int64_t t = 0; t < p.context_length; ++t) offsets[t] = (table.first_pair[t] + number[t]) * row_stride;
}

// kVectors vectors, from `column` on, of the sum of the rows at `offsets`.
template <typename T, int kVectors>
CHARLM_INLINE void sum_rows(const T* column, const int64_t* offsets, int64_t count, Vec<T>* sum) {
  for (int j = 0; j < kVectors; ++j) sum[j] = load(column + offsets[0] + j * kWidth<T>);
  for (int64_t t = 1; t < count; ++t) {
    for (int j = 0; j < kVectors; ++j) sum[j] += load(column + offsets[t] + j * kWidth<T>);
  }
}

template <typename T>
void project(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, int64_t first, int64_t last, bool multiply) {
  const int64_t dim = p.embedding_dim, padded = padded_columns<T>(p.hidden_dim), row = table.embedding_stride;
  gather_embeddings(p, table.pair_token + first, last - first, 1, table.embeddings + first * row, row);
  if (!multiply) return;
  for (int64_t t = 0; t < p.context_length; ++t) {
    const int64_t begin = first > table.first_pair[t] ? first : table.first_pair[t];
    const int64_t end = last < table.first_pair[t + 1] ? last : table.first_pair[t + 1];
    if (begin >= end) continue;
    const T* weight = p.packed_transposed + t * dim * padded;
    T* out = table.table + begin * table.stride;
    gemm<T>(end - begin, padded, dim, {table.embeddings + begin * row, row, 1}, {weight, dim}, out, table.stride,
            false);
    if (t > 0 || p.bias == nullptr) continue;
    for (int64_t u = 0; u < end - begin; ++u) {
      for (int64_t h = 0; h < p.hidden_dim; ++h) out[u * table.stride + h] += p.bias[h];
    }
  }
}

template <typename T, Activation kActivation, int kVectors>
CHARLM_INLINE void forward_vectors(const T* column, const int64_t* offsets, int64_t count, int last_lanes, T* out) {
  Vec<T> sum[kVectors];
  sum_rows<T, kVectors>(column, offsets, count, sum);
  for (int j = 0; j < kVectors; ++j) {
    const int lanes = j == kVectors - 1 ? last_lanes : kWidth<T>;
    store_lanes<T>(out + j * kWidth<T>, activate<kActivation, T>(sum[j]), lanes);
  }
}

template <typename T>
void project_forward(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, int64_t first, int64_t last,
                     T* scratch, int64_t* offsets) {
  const int64_t count = p.context_length;
  const bool direct = is_direct<T>(p.output);
  with_activation(p.activation, [&](auto tag) {
    constexpr Activation kActivation = decltype(tag)::value;
    for (int64_t n = first; n < last; ++n) {
      table_offsets(p, table, n, table.stride, offsets);
      T* out = direct ? static_cast<T*>(p.output.data) + n * p.output.row_stride : scratch;
      for_each_group<T>(
          p.hidden_dim,
          [&](int64_t c) {
            forward_vectors<T, kActivation, kGroupVectors>(table.table + c, offsets, count, kWidth<T>, out + c);
          },
          [&](int64_t c, int lanes) {
            forward_vectors<T, kActivation, 1>(table.table + c, offsets, count, lanes, out + c);
          });
      if (!direct) write_output_row(p, n, out);
    }
  });
}

// A row of the batch as backward sees it, from its first column of interest on.
template <typename T>
struct ScatteredRow {
  const T* gradient;
  const T* output;               // read where the derivative uses it
  const T* table;                // likewise: the columns of P
  const int64_t* table_offsets;  // of its rows in P
  T* partial;
  const int64_t* partial_offsets;
};

template <typename T, Activation kActivation, int kVectors>
CHARLM_INLINE void scatter_vectors(const ScatteredRow<T>& row, int64_t count, int64_t column, int last_lanes) {
  Vec<T> value[kVectors] = {}, dpre[kVectors];
  if constexpr (derivative_uses_input(kActivation)) {
    sum_rows<T, kVectors>(row.table + column, row.table_offsets, count, value);
  }
  for (int j = 0; j < kVectors; ++j) {
    const int64_t c = column + j * kWidth<T>;
    const int lanes = j == kVectors - 1 ? last_lanes : kWidth<T>;
    if constexpr (derivative_uses_output(kActivation)) value[j] = load_lanes<T>(row.output + c, lanes, 0);
    dpre[j] = activate_backward<kActivation, T>(load_lanes<T>(row.gradient + c, lanes, 0), value[j]);
  }
  for (int64_t t = 0; t < count; ++t) {
    T* sum = row.partial + row.partial_offsets[t] + column;
    for (int j = 0; j < kVectors; ++j) store(sum + j * kWidth<T>, load(sum + j * kWidth<T>) + dpre[j]);
  }
}

// total = partial, or total += partial; partial = 0.
template <typename T>
void flush_partial(int64_t pairs, int64_t columns, T* partial, bool is_first, T* total, int64_t total_stride) {
  for (int64_t u = 0; u < pairs; ++u) {
    for (int64_t c = 0; c < columns; c += kWidth<T>) {
      T* from = partial + u * columns + c;
      T* to = total + u * total_stride + c;
      store(to, is_first ? load(from) : load(to) + load(from));
      store(from, Vec<T>{});
    }
  }
}

template <typename T>
void project_scatter(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, int64_t first, int64_t last,
                     T* scratch, int64_t* offsets) {
  const int64_t pairs = table.first_pair[p.context_length], count = p.context_length;
  const int64_t interval = 2 * pairs > kRowsPerPartialSum ? 2 * pairs : kRowsPerPartialSum;
  const int64_t columns = last - first, padded = padded_columns<T>(columns);
  T* partial = scratch;
  T* gradient_row = scratch + pairs * padded;
  T* value_row = gradient_row + padded;
  int64_t* partial_offsets = offsets + count;
  for (int64_t i = 0; i < pairs * padded; i += kWidth<T>) store(partial + i, Vec<T>{});
  with_activation(p.activation, [&](auto tag) {
    constexpr Activation kActivation = decltype(tag)::value;
    for (int64_t begin = 0; begin < p.rows; begin += interval) {
      const int64_t end = p.rows - begin < interval ? p.rows : begin + interval;
      for (int64_t n = begin; n < end; ++n) {
        table_offsets(p, table, n, padded, partial_offsets);
        const T* gradient = read_row(p.grad_output, n, first, columns, gradient_row);
        ScatteredRow<T> row{gradient, gradient, table.table + first, offsets, partial, partial_offsets};
        if constexpr (derivative_uses_output(kActivation))
          row.output = read_row(p.output, n, first, columns, value_row);
        if constexpr (derivative_uses_input(kActivation)) table_offsets(p, table, n, table.stride, offsets);
        for_each_group<T>(
            columns, [&](int64_t c) { scatter_vectors<T, kActivation, kGroupVectors>(row, count, c, kWidth<T>); },
            [&](int64_t c, int lanes) { scatter_vectors<T, kActivation, 1>(row, count, c, lanes); });
      }
      flush_partial(pairs, padded, partial, begin == 0, table.table_gradient + first, table.stride);
    }
  });
}

template <typename T>
void project_weight_gradient(const EmbeddingLinear<T>& p, const ProjectedTable<T>& table, int64_t first, int64_t last) {
  const int64_t dim = p.embedding_dim, width = p.context_length * dim;
  for (int64_t t = 0; t < p.context_length; ++t) {
    const int64_t begin = table.first_pair[t], pairs = table.first_pair[t + 1] - begin;
    const T* gradient = table.table_gradient + begin * table.stride + first;
    if (p.weight_gradient != nullptr) {
      gemm<T>(last - first, dim, pairs, {gradient, 1, table.stride},
              {table.embeddings + begin * table.embedding_stride, pairs, table.embedding_stride},
              p.weight_gradient + first * width + t * dim, width, false);
    }
    if (t > 0 || p.bias_gradient == nullptr) continue;
    T* out = p.bias_gradient + first;
    for (int64_t h = 0; h < last - first; ++h) out[h] = 0;
    for (int64_t u = 0; u < pairs; ++u) {
      for (int64_t h = 0; h < last - first; ++h) out[h] += gradient[u * table.stride + h];
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
    gemm<T>(rows, dim, p.hidden_dim, {table.table_gradient + begin * table.stride, table.stride, 1},
            {weight, p.hidden_dim}, scratch, row_stride, false);
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
  const bool direct = is_direct<T>(p.output);
  with_activation(p.activation, [&](auto tag) {
    for (int64_t begin = first; begin < last; begin += kGatherTileRows) {
      const int64_t rows = last - begin < kGatherTileRows ? last - begin : kGatherTileRows;
      gather_embeddings(p, p.tokens + begin * p.context_length, rows, p.context_length, input, input_stride);
      gemm<T>(rows, padded_columns<T>(hidden), width, {input, input_stride, 1}, {p.packed_transposed, width}, pre,
              hidden_stride, false);
      for (int64_t r = 0; r < rows; ++r) {
        T* values = pre + r * hidden_stride;
        T* out = direct ? static_cast<T*>(p.output.data) + (begin + r) * p.output.row_stride : values;
        for_each_vector<T>(hidden, [&](int64_t h, int lanes) {
          Vec<T> x = load(values + h);
          if (p.bias != nullptr) x = x + load_lanes<T>(p.bias + h, lanes, 0);
          store_lanes<T>(out + h, activate<decltype(tag)::value, T>(x), lanes);
        });
        if (!direct) write_output_row(p, begin + r, out);
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
      gemm<T>(last - first, padded_columns<T>(hidden), width, {input, chunk.input_stride, 1},
              {p.packed_transposed, width}, dpre, chunk.hidden_stride, false);
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
            {chunk.input, chunk.rows, chunk.input_stride}, p.weight_gradient + first * width, width, accumulate);
  }
  if (p.bias_gradient == nullptr) return;
  for_each_vector<T>(last - first, [&](int64_t h, int lanes) {
    Vec<T> sum = {};
    for (int64_t r = 0; r < chunk.rows; ++r) sum += load(chunk.gradient + r * chunk.hidden_stride + first + h);
    T* out = p.bias_gradient + first + h;
    store_lanes<T>(out, accumulate ? load_lanes<T>(out, lanes, 0) + sum : sum, lanes);
  });
}

template <typename T>
void gather_input_gradient(const EmbeddingLinear<T>& p, const GatheredChunk<T>& chunk, int64_t first, int64_t last) {
  gemm<T>(last - first, p.context_length * p.embedding_dim, p.hidden_dim,
          {chunk.gradient + first * chunk.hidden_stride, chunk.hidden_stride, 1}, {p.packed_weight, p.hidden_dim},
          chunk.input_gradient + first * chunk.input_stride, chunk.input_stride, false);
}

template <typename T>
void gather_scatter(const EmbeddingLinear<T>& p, const GatheredChunk<T>& chunk, int64_t first, int64_t last) {
  const int32_t* token = p.tokens + chunk.first_row * p.context_length;
  const int32_t* last_prefetching = token + chunk.rows * p.context_length - kPrefetchDistance;
  for (int64_t r = 0; r < chunk.rows; ++r) {
    for (int64_t t = 0; t < p.context_length; ++t, ++token) {
      if (token < last_prefetching) {
        prefetch_row(p.embedding_gradient + token[kPrefetchDistance] * p.embedding_dim + first, last - first);
      }
      const T* from = chunk.input_gradient + r * chunk.input_stride + t * p.embedding_dim;
      T* to = p.embedding_gradient + *token * p.embedding_dim;
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
