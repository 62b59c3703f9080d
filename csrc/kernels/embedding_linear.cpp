#include "kernels/embedding_linear.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>

#include "kernels/host_library.h"

namespace charlm::cpu {
namespace {

// Work worth waking a thread for: multiply-adds of a matrix product, values of a row kernel.
constexpr int64_t kProductGrain = 1 << 20;
constexpr int64_t kValueGrain = 1 << 15;
// Values that backward of "gather" holds of a chunk of rows, and the most rows of one.
constexpr int64_t kChunkValues = 1 << 20;
constexpr int64_t kChunkRows = 6 * kGatherTileRows;

int64_t grain(int64_t work, int64_t work_per_item) { return 1 + work / (work_per_item > 0 ? work_per_item : 1); }

// The distinct (position, token) pairs of the batch.
struct Pairs {
  int64_t context_length;
  Workspace<int64_t> first;    // (T + 1,)
  Workspace<int32_t> tokens;   // (U,)
  Workspace<int32_t> numbers;  // (N, T)
  int64_t count() const { return first.data()[context_length]; }
};

template <typename T>
Pairs find_pairs(const EmbeddingLinear<T>& p) {
  const int64_t length = p.context_length, most = std::min(p.rows, p.vocab_size);
  Pairs pairs{length, Workspace<int64_t>(length + 1), Workspace<int32_t>(length * most),
              Workspace<int32_t>(p.rows * length)};
  int64_t* first_pair = pairs.first.data();
  int32_t* tokens = pairs.tokens.data();
  parallel_for(length, grain(kValueGrain, p.rows + p.vocab_size), [&](int64_t first, int64_t last) {
    const Workspace<int32_t> seen(p.vocab_size);
    for (int64_t t = first; t < last; ++t) {
      first_pair[t + 1] = index_position(p.tokens, p.rows, length, t, p.vocab_size, seen.data(), pairs.numbers.data(),
                                         tokens + t * most);
    }
  });
  first_pair[0] = 0;
  for (int64_t t = 0; t < length; ++t) {
    const int64_t count = first_pair[t + 1];
    first_pair[t + 1] += first_pair[t];
    std::memmove(tokens + first_pair[t], tokens + t * most, count * sizeof(int32_t));
  }
  return pairs;
}

// The pairs, where projecting them is the cheaper way.
template <typename T>
std::optional<Pairs> pairs_to_project(const EmbeddingLinear<T>& p) {
  if (!may_project(p.rows, p.vocab_size)) return std::nullopt;
  std::optional<Pairs> pairs = find_pairs(p);
  if (!project_is_cheaper(p.rows, p.context_length, p.embedding_dim, p.hidden_dim, pairs->count())) pairs.reset();
  return pairs;
}

// The rows of the table that backward reads: it may have changed by then.
template <typename T>
void pick_rows(const EmbeddingLinear<T>& p) {
  const int64_t size = storage_size(p.embedding.storage), row_stride = p.embedding.row_stride * size,
                column_stride = p.embedding.column_stride * size, width = p.embedding_dim * size;
  const char* from = static_cast<const char*>(p.embedding.data);
  char* to = static_cast<char*>(p.picked_rows);
  parallel_for(p.rows * p.context_length, grain(kValueGrain, p.embedding_dim), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const char* row = from + p.tokens[i] * row_stride;
      if (column_stride == size) {
        copy_bytes(to + i * width, row, width);
      } else {
        for (int64_t d = 0; d < p.embedding_dim; ++d) {
          std::memcpy(to + i * width + d * size, row + d * column_stride, size);
        }
      }
    }
  });
}

// The weight packed for products: as `groups` matrices of T*D / groups columns each.
template <typename T>
Workspace<T> packed_weight(const EmbeddingLinear<T>& p, int64_t groups, bool transposed) {
  const auto& kernels = select<EmbeddingLinearKernels<T>>();
  const int64_t width = p.context_length * p.embedding_dim, columns = width / groups;
  const int64_t size =
      transposed ? columns * kernels.padded_columns(p.hidden_dim) : p.hidden_dim * kernels.padded_columns(columns);
  Workspace<T> packed(groups * size);
  for (int64_t group = 0; group < groups; ++group) {
    const T* from = p.weight + group * columns;
    T* to = packed.data() + group * size;
    transposed ? kernels.pack(from, 1, width, columns, p.hidden_dim, to)
               : kernels.pack(from, width, 1, p.hidden_dim, columns, to);
  }
  return packed;
}

// The tables of "project" and their memory, but for that of dP.
template <typename T>
struct Tables {
  Workspace<T> embeddings, table;
  ProjectedTable<T> view;
};

// pair_rows (U,): which row of `embedding` each pair is. P is filled in where `multiply` is set.
template <typename T>
Tables<T> project(EmbeddingLinear<T> p, const Pairs& pairs, const int32_t* pair_rows, bool multiply) {
  const auto& kernels = select<EmbeddingLinearKernels<T>>();
  const int64_t stride = kernels.stride(p.hidden_dim), embedding_stride = kernels.stride(p.embedding_dim);
  Tables<T> tables{
      Workspace<T>(pairs.count() * embedding_stride), Workspace<T>(multiply ? pairs.count() * stride : 0), {}};
  ProjectedTable<T>& view = tables.view;
  view.first_pair = pairs.first.data();
  view.pair_token = pair_rows;
  view.numbers = pairs.numbers.data();
  view.stride = stride;
  view.embedding_stride = embedding_stride;
  view.embeddings = tables.embeddings.data();
  view.table = tables.table.data();
  std::optional<Workspace<T>> packed;
  if (multiply) p.packed_transposed = packed.emplace(packed_weight(p, p.context_length, true)).data();
  parallel_for(pairs.count(), grain(kProductGrain, p.embedding_dim * p.hidden_dim),
               [&](int64_t first, int64_t last) { kernels.project(p, view, first, last, multiply); });
  view.pair_token = pairs.tokens.data();
  return tables;
}

template <typename T>
void project_forward(const EmbeddingLinear<T>& p, const Pairs& pairs) {
  const Tables<T> tables = project(p, pairs, pairs.tokens.data(), true);
  const auto& kernels = select<EmbeddingLinearKernels<T>>();
  parallel_for(p.rows, grain(kValueGrain, p.hidden_dim), [&](int64_t first, int64_t last) {
    const Workspace<T> scratch(tables.view.stride);
    const Workspace<int64_t> offsets(p.context_length);
    kernels.project_forward(p, tables.view, first, last, scratch.data(), offsets.data());
  });
}

template <typename T>
void gather_forward(EmbeddingLinear<T> p) {
  const int64_t width = p.context_length * p.embedding_dim;
  const auto& kernels = select<EmbeddingLinearKernels<T>>();
  const Workspace<T> packed = packed_weight(p, 1, true);
  p.packed_transposed = packed.data();
  parallel_for(p.rows, grain(kProductGrain, width * p.hidden_dim), [&](int64_t first, int64_t last) {
    const Workspace<T> scratch(kGatherTileRows * (kernels.stride(width) + kernels.stride(p.hidden_dim)));
    kernels.gather_forward(p, first, last, scratch.data());
  });
}

template <typename T>
void project_backward(EmbeddingLinear<T> p, const Pairs& pairs) {
  const auto& kernels = select<EmbeddingLinearKernels<T>>();
  const bool has_picked_rows = p.picked_rows != nullptr;
  const Workspace<int32_t> picked(has_picked_rows ? pairs.count() : 0);  // the row of any token that is this pair
  for (int64_t i = 0; has_picked_rows && i < p.rows * p.context_length; ++i) {
    picked.data()[pairs.first.data()[i % p.context_length] + pairs.numbers.data()[i]] = static_cast<int32_t>(i);
  }
  Tables<T> tables =
      project(p, pairs, has_picked_rows ? picked.data() : pairs.tokens.data(), derivative_uses_input(p.activation));
  ProjectedTable<T>& table = tables.view;
  const Workspace<T> table_gradient(pairs.count() * table.stride);
  table.table_gradient = table_gradient.data();

  parallel_for_columns(p.hidden_dim, kColumnGroup, grain(kValueGrain, p.rows), [&](int64_t first, int64_t last) {
    const int64_t columns = (last - first + kColumnGroup - 1) / kColumnGroup * kColumnGroup;
    const int64_t most = std::min(scatter_columns(pairs.count()), columns);
    const Workspace<T> scratch((pairs.count() + 2) * most);
    const Workspace<int64_t> offsets(2 * p.context_length);
    for (int64_t column = first; column < last; column += most) {
      kernels.project_scatter(p, table, column, std::min(column + most, last), scratch.data(), offsets.data());
    }
  });
  if (p.weight_gradient != nullptr || p.bias_gradient != nullptr) {
    parallel_for_columns(p.hidden_dim, kVectorColumns, grain(kProductGrain, pairs.count() * p.embedding_dim),
                         [&](int64_t first, int64_t last) { kernels.project_weight_gradient(p, table, first, last); });
  }
  if (p.embedding_gradient == nullptr) return;
  const Workspace<T> packed = packed_weight(p, p.context_length, false);
  p.packed_weight = packed.data();
  // A token occurs once in a position at most, so the pairs of one position may be added at the same time.
  for (int64_t t = 0; t < p.context_length; ++t) {
    const int64_t begin = pairs.first.data()[t];
    parallel_for(pairs.first.data()[t + 1] - begin, grain(kProductGrain, p.embedding_dim * p.hidden_dim),
                 [&](int64_t first, int64_t last) {
                   const Workspace<T> scratch(kGatherTileRows * kernels.stride(p.embedding_dim));
                   kernels.project_embedding_gradient(p, table, t, begin + first, begin + last, scratch.data());
                 });
  }
}

template <typename T>
void gather_backward(EmbeddingLinear<T> p) {
  const int64_t width = p.context_length * p.embedding_dim;
  const auto& kernels = select<EmbeddingLinearKernels<T>>();
  std::optional<Workspace<T>> transposed, packed;
  if (derivative_uses_input(p.activation)) p.packed_transposed = transposed.emplace(packed_weight(p, 1, true)).data();
  if (p.embedding_gradient != nullptr) p.packed_weight = packed.emplace(packed_weight(p, 1, false)).data();

  GatheredChunk<T> chunk;
  chunk.input_stride = kernels.stride(width);
  chunk.hidden_stride = kernels.stride(p.hidden_dim);
  int64_t rows = kChunkValues / (2 * chunk.input_stride + chunk.hidden_stride);
  rows = rows > kChunkRows ? kChunkRows : rows < kGatherTileRows ? kGatherTileRows : rows;
  rows = rows > p.rows ? p.rows : rows;
  const Workspace<T> input(rows * chunk.input_stride), gradient(rows * chunk.hidden_stride);
  const Workspace<T> input_gradient(p.embedding_gradient != nullptr ? rows * chunk.input_stride : 0);
  chunk.input = input.data();
  chunk.gradient = gradient.data();
  chunk.input_gradient = input_gradient.data();
  EmbeddingLinear<T> reader = p;  // of the row that each token picked
  const Workspace<int32_t> picked(p.picked_rows != nullptr ? p.rows * p.context_length : 0);
  if (p.picked_rows != nullptr) {
    std::iota(picked.data(), picked.data() + p.rows * p.context_length, 0);
    reader.tokens = picked.data();
  }

  for (; chunk.first_row < p.rows; chunk.first_row += rows) {
    chunk.rows = p.rows - chunk.first_row < rows ? p.rows - chunk.first_row : rows;
    parallel_for(chunk.rows, grain(kValueGrain, width + p.hidden_dim), [&](int64_t first, int64_t last) {
      const Workspace<T> scratch(2 * chunk.hidden_stride);
      kernels.gather_gradient(reader, chunk, first, last, scratch.data());
    });
    const int64_t units = grain(kProductGrain, chunk.rows * width);
    parallel_for_columns(p.hidden_dim, kVectorColumns, units,
                         [&](int64_t first, int64_t last) { kernels.gather_weight_gradient(p, chunk, first, last); });
    if (p.embedding_gradient == nullptr) continue;
    parallel_for(chunk.rows, grain(kProductGrain, width * p.hidden_dim),
                 [&](int64_t first, int64_t last) { kernels.gather_input_gradient(p, chunk, first, last); });
    parallel_for_columns(p.embedding_dim, kVectorColumns, grain(kValueGrain, chunk.rows * p.context_length),
                         [&](int64_t first, int64_t last) { kernels.gather_scatter(p, chunk, first, last); });
  }
}

}  // namespace

template <typename T>
bool embedding_linear_forward(const EmbeddingLinear<T>& problem) {
  if (problem.picked_rows != nullptr) pick_rows(problem);
  const std::optional<Pairs> pairs = pairs_to_project(problem);
  pairs.has_value() ? project_forward(problem, *pairs) : gather_forward(problem);
  return pairs.has_value();
}

template <typename T>
bool embedding_linear_backward(const EmbeddingLinear<T>& problem) {
  const std::optional<Pairs> pairs = pairs_to_project(problem);
  pairs.has_value() ? project_backward(problem, *pairs) : gather_backward(problem);
  return pairs.has_value();
}

template bool embedding_linear_forward(const EmbeddingLinear<float>&);
template bool embedding_linear_forward(const EmbeddingLinear<double>&);
template bool embedding_linear_backward(const EmbeddingLinear<float>&);
template bool embedding_linear_backward(const EmbeddingLinear<double>&);

}  // namespace charlm::cpu
