#include <algorithm>
#include <atomic>
#include <cstring>

#include "bindings/embedding_linear_arguments.h"
#include "bindings/layers.h"

namespace charlm {
namespace {

// Work worth waking a thread for: multiply-adds of a matrix product, values of a row kernel.
constexpr int64_t kProductGrain = 1 << 20;
constexpr int64_t kValueGrain = 1 << 15;
// Values that backward of "gather" holds of a chunk of rows, and the most rows of one.
constexpr int64_t kChunkValues = 1 << 20;
constexpr int64_t kChunkRows = 256;

int64_t grain(int64_t work, int64_t work_per_item) { return 1 + work / (work_per_item > 0 ? work_per_item : 1); }

StoredMatrix stored_matrix(const Tensor& tensor) {
  StoredMatrix matrix;
  matrix.data = const_cast<void*>(tensor.const_data_ptr());
  matrix.storage = storage_of(tensor);
  matrix.row_stride = *row_stride(tensor);
  matrix.column_stride = tensor.stride(tensor.dim() - 1);
  return matrix;
}

// The arguments, converted, and the problem that points into them.
template <typename T>
struct Arguments {
  Tensor ids, weight;
  OptionalTensor bias;
  Workspace<int32_t> tokens;
  int64_t vocab_size;
  std::vector<int64_t> output_shape;
  EmbeddingLinear<T> problem;
};

[[noreturn]] void refuse_ids(const Tensor& ids, const TokenIds& flat, int64_t vocab_size) {
  int64_t index = first_bad_id(flat, vocab_size);
  const int64_t id = id_at(flat, index / flat.context_length, index % flat.context_length);
  const std::string value =
      flat.type == IntegerType::kUInt64 ? std::to_string(static_cast<uint64_t>(id)) : std::to_string(id);
  std::string position;
  for (int64_t d = ids.dim() - 1; d >= 0; --d) {
    position = std::to_string(index % ids.size(d)) + (position.empty() ? "" : ", ") + position;
    index /= ids.size(d);
  }
  throw std::out_of_range(
      concatenate("ids[", position, "] = ", value, " is out of range for ", vocab_size, " embeddings"));
}

// Of checked arguments; the problem has no table yet.
template <typename T>
Arguments<T> read_arguments(const Tensor& ids, const Tensor& weight, const OptionalTensor& bias, int64_t activation,
                            int64_t vocab_size, int64_t embedding_dim) {
  constexpr ScalarType type = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  const int64_t context_length = ids.size(ids.dim() - 1), rows = context_rows(ids);
  Arguments<T> arguments{with_rows(ids),
                         contiguous_as(weight, type),
                         bias.has_value() ? OptionalTensor(contiguous_as(*bias, type)) : std::nullopt,
                         Workspace<int32_t>(std::max(ids.numel(), rows)),
                         std::max<int64_t>(vocab_size, 1),
                         layer_shape(ids, weight),
                         {}};

  EmbeddingLinear<T>& problem = arguments.problem;
  problem.context_length = context_length;
  problem.rows = rows;
  problem.embedding_dim = embedding_dim;
  problem.hidden_dim = weight.size(0);
  problem.activation = static_cast<Activation>(activation);
  problem.tokens = arguments.tokens.data();
  if (arguments.bias.has_value()) problem.bias = arguments.bias->template const_data_ptr<T>();

  if (context_length == 0) {  // computed as contexts of one token, which has no dimensions
    problem.context_length = 1;
    problem.embedding_dim = 0;
    fill_zero(arguments.tokens.data(), rows * sizeof(int32_t));
    return arguments;
  }
  const TokenIds flat = token_ids(arguments.ids);
  std::atomic<bool> good{true};
  parallel_for(problem.rows, grain(kValueGrain, problem.context_length), [&](int64_t first, int64_t last) {
    if (!read_tokens(flat, arguments.vocab_size, first, last, arguments.tokens.data())) good = false;
  });
  if (!good) refuse_ids(ids, flat, arguments.vocab_size);
  return arguments;
}

// The distinct (position, token) pairs of the batch.
struct Pairs {
  int64_t context_length;
  Workspace<int64_t> first;   // (T + 1,)
  Workspace<int32_t> tokens;  // (U,)
  Workspace<int32_t> slots;   // (N, T)
  int64_t count() const { return first.data()[context_length]; }
};

Pairs find_pairs(const int32_t* tokens, int64_t rows, int64_t context_length, int64_t vocab_size) {
  const int64_t most = rows < vocab_size ? rows : vocab_size;
  Pairs pairs{context_length, Workspace<int64_t>(context_length + 1), Workspace<int32_t>(context_length * most),
              Workspace<int32_t>(rows * context_length)};
  int64_t* first_pair = pairs.first.data();
  parallel_for(context_length, grain(kValueGrain, rows + vocab_size), [&](int64_t first, int64_t last) {
    const Workspace<int32_t> seen(vocab_size);
    for (int64_t t = first; t < last; ++t) {
      first_pair[t + 1] = index_position(tokens, rows, context_length, t, vocab_size, seen.data(), pairs.slots.data(),
                                         pairs.tokens.data() + t * most);
    }
  });
  first_pair[0] = 0;
  for (int64_t t = 0; t < context_length; ++t) {
    const int64_t count = first_pair[t + 1];
    first_pair[t + 1] += first_pair[t];
    std::memmove(pairs.tokens.data() + first_pair[t], pairs.tokens.data() + t * most, count * sizeof(int32_t));
  }
  return pairs;
}

// The pairs, where projecting them is the cheaper way.
template <typename T>
std::optional<Pairs> pairs_to_project(const Arguments<T>& arguments) {
  const EmbeddingLinear<T>& p = arguments.problem;
  if (!may_project(p.rows, arguments.vocab_size)) return std::nullopt;
  std::optional<Pairs> pairs;
  pairs.emplace(find_pairs(p.tokens, p.rows, p.context_length, arguments.vocab_size));
  if (!project_is_cheaper(p.rows, p.context_length, p.embedding_dim, p.hidden_dim, pairs->count())) pairs.reset();
  return pairs;
}

// The rows of the table that backward reads: it may have changed by then.
template <typename T>
Tensor keep_rows(const Tensor& ids, const Tensor& embedding, const EmbeddingLinear<T>& p) {
  if (!keeps_picked_rows(ids, embedding.size(0))) {
    Tensor copy = allocate(embedding.sizes(), embedding.scalar_type());
    if (embedding.is_contiguous()) {
      copy_bytes(copy.mutable_data_ptr(), embedding.const_data_ptr(), embedding.numel() * embedding.element_size());
    } else {
      torch::stable::copy_(copy, embedding);
    }
    return copy;
  }
  const int64_t dim = embedding.size(1);
  const Tensor rows = allocate({ids.numel(), dim}, embedding.scalar_type());
  const int64_t size = embedding.element_size(), row_stride = p.embedding.row_stride * size,
                column_stride = p.embedding.column_stride * size, width = dim * size;
  const char* from = static_cast<const char*>(p.embedding.data);
  char* to = static_cast<char*>(rows.mutable_data_ptr());
  parallel_for(ids.numel(), grain(kValueGrain, dim), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const char* row = from + p.tokens[i] * row_stride;
      if (column_stride == size) {
        copy_bytes(to + i * width, row, width);
      } else {
        for (int64_t d = 0; d < dim; ++d) {
          std::memcpy(to + i * width + d * size, row + d * column_stride, size);
        }
      }
    }
  });
  return rows;
}

// Which row of `rows` to read in the place of the table's row of a token, or of a pair.
struct RowNumbers {
  Workspace<int32_t> of_token;  // (N, T)
  Workspace<int32_t> of_pair;   // (U,)
};

// Of rows that are one an id: its own, and for a pair that of any id which is this pair.
template <typename T>
RowNumbers number_picked_rows(const EmbeddingLinear<T>& p, const Pairs* pairs) {
  RowNumbers numbers{Workspace<int32_t>(p.rows * p.context_length),
                     Workspace<int32_t>(pairs != nullptr ? pairs->count() : 0)};
  for (int64_t i = 0; i < p.rows * p.context_length; ++i) {
    numbers.of_token.data()[i] = static_cast<int32_t>(i);
    if (pairs == nullptr) continue;
    const int64_t pair = pairs->first.data()[i % p.context_length] + pairs->slots.data()[i];
    numbers.of_pair.data()[pair] = static_cast<int32_t>(i);
  }
  return numbers;
}

// The products below need the weight packed: as `groups` matrices of T*D / groups columns each.
template <typename T>
class PackedWeight {
 public:
  PackedWeight(const Arguments<T>& arguments, int64_t groups, bool transposed)
      : packed_(size(arguments, groups, transposed)) {
    const EmbeddingLinear<T>& p = arguments.problem;
    const auto& kernels = cpu::select<cpu::EmbeddingLinearKernels<T>>();
    const T* weight = arguments.weight.template const_data_ptr<T>();
    const int64_t width = p.context_length * p.embedding_dim, columns = width / groups;
    for (int64_t group = 0; group < groups; ++group) {
      const T* from = weight + group * columns;
      T* to = packed_.data() + size(arguments, groups, transposed) / groups * group;
      transposed ? kernels.pack(from, 1, width, columns, p.hidden_dim, to)
                 : kernels.pack(from, width, 1, p.hidden_dim, columns, to);
    }
  }
  const T* data() const { return packed_.data(); }

 private:
  static int64_t size(const Arguments<T>& arguments, int64_t groups, bool transposed) {
    const EmbeddingLinear<T>& p = arguments.problem;
    const auto padded = cpu::select<cpu::EmbeddingLinearKernels<T>>().padded_columns;
    const int64_t columns = p.context_length * p.embedding_dim / groups;
    return groups * (transposed ? columns * padded(p.hidden_dim) : p.hidden_dim * padded(columns));
  }
  Workspace<T> packed_;
};

// The tables of "project" in memory, P filled in where multiply is set.
template <typename T>
class Tables {
 public:
  // pair_rows (U,): the rows of `embedding` that the pairs are; null: those of their tokens.
  Tables(Arguments<T>* arguments, const Pairs& pairs, bool multiply, const int32_t* pair_rows = nullptr)
      : stride_(kernels().stride(arguments->problem.hidden_dim)),
        embedding_stride_(kernels().stride(arguments->problem.embedding_dim)),
        embeddings_(pairs.count() * embedding_stride_),
        table_(multiply ? pairs.count() * stride_ : 0) {
    EmbeddingLinear<T>& p = arguments->problem;
    view_.first_pair = pairs.first.data();
    view_.pair_token = pair_rows != nullptr ? pair_rows : pairs.tokens.data();
    view_.slots = pairs.slots.data();
    view_.stride = stride_;
    view_.embedding_stride = embedding_stride_;
    view_.embeddings = embeddings_.data();
    view_.table = table_.data();
    std::optional<PackedWeight<T>> packed;
    if (multiply) p.packed_transposed = packed.emplace(*arguments, p.context_length, true).data();
    parallel_for(pairs.count(), grain(kProductGrain, p.embedding_dim * p.hidden_dim),
                 [&](int64_t first, int64_t last) { kernels().project(p, view_, first, last, multiply); });
    view_.pair_token = pairs.tokens.data();
  }
  ProjectedTable<T>& view() { return view_; }

 private:
  static const cpu::EmbeddingLinearKernels<T>& kernels() { return cpu::select<cpu::EmbeddingLinearKernels<T>>(); }
  int64_t stride_, embedding_stride_;
  Workspace<T> embeddings_, table_;
  ProjectedTable<T> view_;
};

template <typename T>
void project_forward(Arguments<T>* arguments, const Pairs& pairs) {
  took_branch("embedding_linear_forward/project");
  const EmbeddingLinear<T>& p = arguments->problem;
  Tables<T> tables(arguments, pairs, true);
  const auto& kernels = cpu::select<cpu::EmbeddingLinearKernels<T>>();
  parallel_for(p.rows, grain(kValueGrain, p.hidden_dim), [&](int64_t first, int64_t last) {
    const Workspace<T> scratch(tables.view().stride);
    const Workspace<int64_t> offsets(p.context_length);
    kernels.project_forward(p, tables.view(), first, last, scratch.data(), offsets.data());
  });
}

template <typename T>
void gather_forward(Arguments<T>* arguments) {
  took_branch("embedding_linear_forward/gather");
  EmbeddingLinear<T>& p = arguments->problem;
  const int64_t width = p.context_length * p.embedding_dim;
  const auto& kernels = cpu::select<cpu::EmbeddingLinearKernels<T>>();
  const PackedWeight<T> packed(*arguments, 1, true);
  p.packed_transposed = packed.data();
  parallel_for(p.rows, grain(kProductGrain, width * p.hidden_dim), [&](int64_t first, int64_t last) {
    const Workspace<T> scratch(kGatherTileRows * (kernels.stride(width) + kernels.stride(p.hidden_dim)));
    kernels.gather_forward(p, first, last, scratch.data());
  });
}

template <typename T>
void project_backward(Arguments<T>* arguments, const Pairs& pairs, const RowNumbers* numbers) {
  took_branch("embedding_linear_backward/project");
  EmbeddingLinear<T>& p = arguments->problem;
  const auto& kernels = cpu::select<cpu::EmbeddingLinearKernels<T>>();
  Tables<T> tables(arguments, pairs, derivative_uses_input(p.activation),
                   numbers != nullptr ? numbers->of_pair.data() : nullptr);
  ProjectedTable<T>& table = tables.view();
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
  const PackedWeight<T> packed(*arguments, p.context_length, false);
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
void gather_backward(Arguments<T>* arguments, const RowNumbers* numbers) {
  took_branch("embedding_linear_backward/gather");
  EmbeddingLinear<T>& p = arguments->problem;
  const int64_t width = p.context_length * p.embedding_dim;
  const auto& kernels = cpu::select<cpu::EmbeddingLinearKernels<T>>();
  std::optional<PackedWeight<T>> transposed, packed;
  if (derivative_uses_input(p.activation)) p.packed_transposed = transposed.emplace(*arguments, 1, true).data();
  if (p.embedding_gradient != nullptr) p.packed_weight = packed.emplace(*arguments, 1, false).data();

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
  EmbeddingLinear<T> reader = p;
  if (numbers != nullptr) reader.tokens = numbers->of_token.data();

  for (; chunk.first_row < p.rows; chunk.first_row += rows) {
    chunk.rows = p.rows - chunk.first_row < rows ? p.rows - chunk.first_row : rows;
    parallel_for(chunk.rows, grain(kValueGrain, width + p.hidden_dim), [&](int64_t first, int64_t last) {
      const Workspace<T> scratch(2 * chunk.hidden_stride);
      kernels.gather_gradient(reader, chunk, first, last, scratch.data());
    });
    const int64_t units = grain(kProductGrain, chunk.rows * width);
    parallel_for_columns(p.hidden_dim, kVectorColumns, units, [&](int64_t first, int64_t last) {
      const Workspace<T> scratch(kTransposedUnits * kernels.stride(chunk.rows));
      kernels.gather_weight_gradient(p, chunk, first, last, scratch.data());
    });
    if (p.embedding_gradient == nullptr) continue;
    parallel_for(chunk.rows, grain(kProductGrain, width * p.hidden_dim),
                 [&](int64_t first, int64_t last) { kernels.gather_input_gradient(p, chunk, first, last); });
    parallel_for_columns(p.embedding_dim, kVectorColumns, grain(kValueGrain, chunk.rows * p.context_length),
                         [&](int64_t first, int64_t last) { kernels.gather_scatter(p, chunk, first, last); });
  }
}

}  // namespace

std::tuple<Tensor, Tensor> embedding_linear_forward(const Tensor ids, const Tensor embedding, const Tensor weight,
                                                    const OptionalTensor bias, int64_t activation, bool keeps_rows) {
  check_on_cpu("ids", ids);
  check_on_cpu("embedding", embedding);
  check_embedding_linear(ids, embedding, weight, bias, activation);
  OptionalTensor output, rows;
  dispatch_compute_type(embedding, [&](auto type) {
    using T = decltype(type);
    Arguments<T> arguments = read_arguments<T>(ids, weight, bias, activation, embedding.size(0), embedding.size(1));
    arguments.problem.embedding = stored_matrix(embedding);
    output = allocate(arguments.output_shape, embedding.scalar_type());
    arguments.problem.output = stored_matrix(*output);
    rows = keeps_rows ? keep_rows(ids, embedding, arguments.problem) : allocate({0}, embedding.scalar_type());
    const std::optional<Pairs> pairs = pairs_to_project(arguments);
    pairs.has_value() ? project_forward(&arguments, *pairs) : gather_forward(&arguments);
  });
  return {*output, *rows};
}

namespace {

// A gradient in the compute type, and the pointer to it that is null where it is not wanted.
template <typename T>
Tensor gradient_of(std::initializer_list<int64_t> shape, bool wanted, T** data) {
  constexpr ScalarType type = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  const Tensor gradient = wanted ? allocate(shape, type) : allocate({0}, type);
  *data = wanted ? gradient.mutable_data_ptr<T>() : nullptr;
  return gradient;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> embedding_linear_backward(const Tensor grad_output, const Tensor output,
                                                             const Tensor ids, const Tensor rows, const Tensor weight,
                                                             const OptionalTensor bias, int64_t activation,
                                                             int64_t vocab_size, bool wants_embedding,
                                                             bool wants_weight, bool wants_bias) {
  check_on_cpu("ids", ids);
  check_on_cpu("rows", rows);
  check_embedding_linear_backward(grad_output, output, ids, rows, weight, bias, activation, vocab_size);
  std::optional<std::tuple<Tensor, Tensor, Tensor>> result;
  dispatch_compute_type(rows, [&](auto type) {
    using T = decltype(type);
    const int64_t embedding_dim = rows.size(1), hidden_dim = weight.size(0);
    Arguments<T> arguments = read_arguments<T>(ids, weight, bias, activation, vocab_size, embedding_dim);
    EmbeddingLinear<T>& problem = arguments.problem;
    problem.embedding = stored_matrix(rows);
    const Tensor gradient_rows = with_rows(grad_output), output_rows = with_rows(output);
    problem.grad_output = stored_matrix(gradient_rows);
    problem.output = stored_matrix(output_rows);

    const Tensor embedding_gradient =
        gradient_of({vocab_size, embedding_dim}, wants_embedding, &problem.embedding_gradient);
    const Tensor weight_gradient = gradient_of({hidden_dim, weight.size(1)}, wants_weight, &problem.weight_gradient);
    const Tensor bias_gradient = gradient_of({hidden_dim}, wants_bias, &problem.bias_gradient);
    fill_zero(problem.embedding_gradient, embedding_gradient.numel() * sizeof(T));
    const std::optional<Pairs> pairs = pairs_to_project(arguments);
    std::optional<RowNumbers> numbers;
    if (keeps_picked_rows(ids, vocab_size)) {
      numbers.emplace(number_picked_rows(problem, pairs.has_value() ? &*pairs : nullptr));
    }
    const RowNumbers* row_numbers = numbers.has_value() ? &*numbers : nullptr;
    pairs.has_value() ? project_backward(&arguments, *pairs, row_numbers) : gather_backward(&arguments, row_numbers);

    const auto stored = [&](const Tensor& gradient) { return contiguous_as(gradient, rows.scalar_type()); };
    result.emplace(stored(embedding_gradient), stored(weight_gradient), stored(bias_gradient));
  });
  return *result;
}

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, library) {
  library.impl("embedding_linear_forward", TORCH_BOX(&embedding_linear_forward));
  library.impl("embedding_linear_backward", TORCH_BOX(&embedding_linear_backward));
}

}  // namespace charlm
