#include <type_traits>

#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/embedding_linear_rows.cuh"
#include "kernels/cuda/segmented_sum.cuh"
#include "kernels/embedding_linear.h"

namespace charlm::cuda {
namespace {

template <typename S>
constexpr Storage kStorage = sizeof(Compute<S>) == 8 ? Storage::kFloat64 : Storage::kFloat32;

// One call: its launches, in the storage type of its tensors.
template <typename S>
class Layer {
 public:
  using T = Compute<S>;

  Layer(const EmbeddingLinearCall& call, DeviceLibrary& library, Stream stream)
      : call_(call),
        library_(library),
        stream_(stream),
        context_length_(call.ids.context_length),
        width_(call.ids.context_length * call.embedding_dim),
        table_rows_(call.vocab_size * call.ids.context_length),
        projects_(embedding_linear_projects(call)),
        rows_{call.ids.rows,
              call.ids.context_length,
              call.hidden_dim,
              call.activation,
              nullptr,
              nullptr,
              nullptr,
              static_cast<const S*>(call.bias),
              static_cast<S*>(call.output),
              static_cast<const S*>(call.grad_output)} {}

  Error forward() {
    if (rows_.rows == 0 || rows_.hidden_dim == 0) return cudaSuccess;
    if (const Error error = read_ids()) return error;
    if (projects_) {
      if (const Error error = project()) return error;
      return has_vectors(rows_.output) ? sum_rows<kVectorWidth<S>>() : sum_rows<1>();
    }
    const S* input;
    if (const Error error = gather(not_a_number<T>(), &input)) return error;
    multiply_input(input, rows_.output);
    const bool done = rows_.bias == nullptr && rows_.activation == Activation::kNone;
    if (done && call_.embedding_dim > 0) return cudaSuccess;
    return has_vectors(rows_.output) ? add_bias_and_activate<kVectorWidth<S>>() : add_bias_and_activate<1>();
  }

  Error backward() {
    if (rows_.rows == 0 || rows_.hidden_dim == 0) return clear_gradients();
    if (const Error error = read_ids()) return error;
    return projects_ ? project_backward() : gather_backward();
  }

 private:
  Matrix matrix(const void* data, int64_t rows, int64_t columns) const {
    return Matrix(data, call_.storage, rows, columns);
  }
  Matrix computed(const T* data, int64_t rows, int64_t columns) const {
    return Matrix(data, kStorage<S>, rows, columns);
  }
  bool has_vectors(const void* rows) const {
    return has_vector_rows<S>(rows, rows_.hidden_dim) &&
           (rows_.bias == nullptr || has_vector_rows<S>(rows_.bias, rows_.hidden_dim));
  }

  Error read_ids() {
    int32_t* keys = library_.allocate_values<int32_t>(rows_.rows * context_length_);
    rows_.keys = keys;
    return launch(read_keys, (rows_.rows + kKeyThreads - 1) / kKeyThreads, dim3(kKeyThreads), 0, stream_, call_.ids,
                  call_.vocab_size, projects_, keys);
  }

  // `from` as T: itself, or a converted copy.
  Error compute_copy(const void* from, int64_t count, const T** copy) {
    if constexpr (std::is_same_v<S, T>) {
      *copy = static_cast<const T*>(from);
      return cudaSuccess;
    } else {
      T* to = library_.allocate_values<T>(count);
      *copy = to;
      return convert(static_cast<const S*>(from), count, to, stream_);
    }
  }
  // Where to write a gradient as T, and what then makes it one of S.
  T* compute_target(void* gradient, int64_t count) {
    if constexpr (std::is_same_v<S, T>) {
      return static_cast<T*>(gradient);
    } else {
      return library_.allocate_values<T>(count);
    }
  }
  Error store_target(const T* computed, int64_t count, void* gradient) {
    if constexpr (std::is_same_v<S, T>) {
      return cudaSuccess;
    } else {
      return convert(computed, count, static_cast<S*>(gradient), stream_);
    }
  }

  // E and Wt as T.
  Error read_parameters(const T** embedding, const T** weight) {
    if (const Error error = compute_copy(call_.embedding, call_.vocab_size * call_.embedding_dim, embedding)) {
      return error;
    }
    T* swapped = library_.allocate_values<T>(rows_.hidden_dim * width_);
    *weight = swapped;
    return swap_outer(static_cast<const S*>(call_.weight), rows_.hidden_dim, context_length_, call_.embedding_dim,
                      swapped, stream_);
  }

  Error project() {
    const T *embedding, *weight;
    if (const Error error = read_parameters(&embedding, &weight)) return error;
    T* table = library_.allocate_values<T>(table_rows_ * rows_.hidden_dim);
    rows_.table = table;
    const int64_t columns = context_length_ * rows_.hidden_dim;
    library_.multiply(computed(table, call_.vocab_size, columns),
                      computed(embedding, call_.vocab_size, call_.embedding_dim),
                      computed(weight, columns, call_.embedding_dim).transposed());
    return cudaSuccess;
  }

  template <int kWidth>
  Error sum_rows() {
    const RowGrid grid = RowGrid::of(rows_.rows, rows_.hidden_dim / kWidth, kTableRowsAhead);
    return launch(sum_table_rows<S, kWidth>, grid.blocks, grid.threads, 0, stream_, rows_);
  }

  Error gather(T invalid, const S** input) {
    S* to = library_.allocate_values<S>(rows_.rows * width_);
    *input = to;
    const auto* embedding = static_cast<const S*>(call_.embedding);
    const auto run = [&](auto width) {
      const int64_t count = rows_.rows * context_length_;
      const RowGrid grid = RowGrid::of(count, call_.embedding_dim / width(), kRowsPerThread);
      return launch(gather_embeddings<S, width()>, grid.blocks, grid.threads, 0, stream_, rows_.keys, count,
                    call_.embedding_dim, embedding, invalid, to);
    };
    return has_vector_rows<S>(embedding, call_.embedding_dim) ? run(std::integral_constant<int, kVectorWidth<S>>{})
                                                              : run(std::integral_constant<int, 1>{});
  }

  void multiply_input(const S* input, S* output) {
    library_.multiply(matrix(output, rows_.rows, rows_.hidden_dim), matrix(input, rows_.rows, width_),
                      matrix(call_.weight, rows_.hidden_dim, width_).transposed());
  }

  template <int kWidth>
  Error add_bias_and_activate() {
    const RowGrid grid = RowGrid::of(rows_.rows, rows_.hidden_dim / kWidth, kRowsPerThread);
    return launch(activate_rows<S, kWidth>, grid.blocks, grid.threads, 0, stream_, rows_);
  }

  template <typename Out>
  Error run_activation_gradient(Out* gradient) {
    const RowGrid grid = RowGrid::of(rows_.rows, rows_.hidden_dim, kRowsPerThread);
    return launch(activation_gradient<S, Out>, grid.blocks, grid.threads, 0, stream_, rows_, gradient);
  }

  Error project_backward() {
    if (derivative_uses_input(rows_.activation)) {
      if (const Error error = project()) return error;
    }
    T* gradient = library_.allocate_values<T>(table_rows_ * rows_.hidden_dim);  // dP
    if (const Error error = scatter(gradient)) return error;

    const int64_t vocab_size = call_.vocab_size, dim = call_.embedding_dim,
                  columns = context_length_ * rows_.hidden_dim;
    if (call_.bias_gradient != nullptr) {  // every row of the batch has one token at position 0
      const Error error = column_sums(static_cast<const T*>(gradient), vocab_size, rows_.hidden_dim, columns, false,
                                      static_cast<S*>(call_.bias_gradient), library_, stream_);
      if (error != cudaSuccess) return error;
    }
    const T *embedding, *weight;
    if (const Error error = read_parameters(&embedding, &weight)) return error;
    if (call_.weight_gradient != nullptr) {
      T* swapped = library_.allocate_values<T>(rows_.hidden_dim * width_);
      library_.multiply(computed(swapped, columns, dim), computed(gradient, vocab_size, columns).transposed(),
                        computed(embedding, vocab_size, dim));
      const Error error = swap_outer(static_cast<const T*>(swapped), context_length_, rows_.hidden_dim, dim,
                                     static_cast<S*>(call_.weight_gradient), stream_);
      if (error != cudaSuccess) return error;
    }
    if (call_.embedding_gradient == nullptr) return cudaSuccess;
    T* result = compute_target(call_.embedding_gradient, vocab_size * dim);
    library_.multiply(computed(result, vocab_size, dim), computed(gradient, vocab_size, columns),
                      computed(weight, columns, dim));
    return store_target(result, vocab_size * dim, call_.embedding_gradient);
  }

  Error scatter(T* gradient) {
    const int64_t size = table_rows_ * rows_.hidden_dim;
    const ScatterShape shape = ScatterShape::of(rows_.rows, table_rows_, rows_.hidden_dim, sizeof(T));
    if (shape.warps == 0) {
      T* rows = library_.allocate_values<T>(rows_.rows * rows_.hidden_dim);
      if (const Error error = run_activation_gradient(rows)) return error;
      return segmented_sum(rows_.keys, rows_.rows * context_length_, static_cast<const T*>(rows), context_length_,
                           rows_.hidden_dim, gradient, table_rows_, library_, stream_);
    }
    T* partial = shape.row_blocks == 1 ? gradient : library_.allocate_values<T>(shape.row_blocks * size);
    if (const Error error =
            launch(scatter_into_tables<S>, shape.row_blocks * shape.column_blocks, dim3(shape.warps * kWarp),
                   shape.shared_bytes(sizeof(T)), stream_, rows_, shape, partial)) {
      return error;
    }
    if (shape.row_blocks == 1) return cudaSuccess;
    return add_partial_tables(static_cast<const T*>(partial), shape.row_blocks, size, gradient, stream_);
  }

  Error gather_backward() {
    const S* input = nullptr;
    if (call_.weight_gradient != nullptr || derivative_uses_input(rows_.activation)) {
      if (const Error error = gather(T(0), &input)) return error;
    }
    if (derivative_uses_input(rows_.activation)) {
      S* pre = library_.allocate_values<S>(rows_.rows * rows_.hidden_dim);
      rows_.pre = pre;
      multiply_input(input, pre);
    }
    S* gradient = library_.allocate_values<S>(rows_.rows * rows_.hidden_dim);
    if (const Error error = run_activation_gradient(gradient)) return error;
    const Matrix rows = matrix(gradient, rows_.rows, rows_.hidden_dim);
    if (call_.bias_gradient != nullptr) {
      const Error error = column_sums(static_cast<const S*>(gradient), rows_.rows, rows_.hidden_dim, rows_.hidden_dim,
                                      false, static_cast<S*>(call_.bias_gradient), library_, stream_);
      if (error != cudaSuccess) return error;
    }
    if (call_.weight_gradient != nullptr) {
      library_.multiply(matrix(call_.weight_gradient, rows_.hidden_dim, width_), rows.transposed(),
                        matrix(input, rows_.rows, width_));
    }
    if (call_.embedding_gradient == nullptr) return cudaSuccess;
    S* input_gradient = library_.allocate_values<S>(rows_.rows * width_);
    library_.multiply(matrix(input_gradient, rows_.rows, width_), rows, matrix(call_.weight, rows_.hidden_dim, width_));
    const int64_t size = call_.vocab_size * call_.embedding_dim;
    T* result = compute_target(call_.embedding_gradient, size);
    if (const Error error =
            segmented_sum(rows_.keys, rows_.rows * context_length_, static_cast<const S*>(input_gradient), 1,
                          call_.embedding_dim, result, call_.vocab_size, library_, stream_)) {
      return error;
    }
    return store_target(result, size, call_.embedding_gradient);
  }

  Error clear_gradients() {
    const auto clear_one = [&](void* gradient, int64_t count) {
      return gradient == nullptr ? cudaSuccess : clear(static_cast<S*>(gradient), count, stream_);
    };
    if (const Error error = clear_one(call_.embedding_gradient, call_.vocab_size * call_.embedding_dim)) return error;
    if (const Error error = clear_one(call_.weight_gradient, rows_.hidden_dim * width_)) return error;
    return clear_one(call_.bias_gradient, rows_.hidden_dim);
  }

  const EmbeddingLinearCall& call_;
  DeviceLibrary& library_;
  Stream stream_;
  int64_t context_length_, width_, table_rows_;
  bool projects_;
  LayerRows<S> rows_;
};

}  // namespace

bool embedding_linear_projects(const EmbeddingLinearCall& call) {
  const int64_t value_size = call.storage == Storage::kFloat64 ? 8 : 4;
  const int64_t row_bytes = call.ids.context_length * call.hidden_dim * value_size;
  return call.vocab_size <= call.ids.rows && call.vocab_size <= kProjectedTableBytes / (row_bytes > 0 ? row_bytes : 1);
}

Error embedding_linear_forward(const EmbeddingLinearCall& call, DeviceLibrary& library, Stream stream) {
  return with_any_storage(call.storage,
                          [&](auto type) { return Layer<decltype(type)>(call, library, stream).forward(); });
}

Error embedding_linear_backward(const EmbeddingLinearCall& call, DeviceLibrary& library, Stream stream) {
  return with_any_storage(call.storage,
                          [&](auto type) { return Layer<decltype(type)>(call, library, stream).backward(); });
}

}  // namespace charlm::cuda
