#include <type_traits>

#include "kernels/cuda/embedding_linear_projection.cuh"
#include "kernels/cuda/embedding_linear_rows.cuh"
#include "kernels/cuda/segmented_sum.cuh"
#include "kernels/cuda/token_keys.cuh"

namespace charlm::cuda {
namespace {

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
        projects_(embedding_linear_projects(call)),
        projection_(call, library, stream),
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
      if (const Error error = projection_.table(&rows_.table)) return error;
      return has_vectors(rows_.output) ? sum_rows<kVector>() : sum_rows<1>();
    }
    const S* input;
    auto* picked = static_cast<S*>(call_.picked_rows);
    if (const Error error = gather(not_a_number<T>(), picked, &input)) return error;
    multiply_input(input, rows_.output);
    const bool done = rows_.bias == nullptr && rows_.activation == Activation::kNone;
    if (done && call_.embedding_dim > 0) return cudaSuccess;
    return has_vectors(rows_.output) ? add_bias_and_activate<kVector>() : add_bias_and_activate<1>();
  }

  Error backward() {
    if (rows_.rows == 0 || rows_.hidden_dim == 0) return clear_gradients();
    if (const Error error = read_ids()) return error;
    return projects_ ? project_backward() : gather_backward();
  }

 private:
  static constexpr int kVector = kVectorWidth<T>;  // values that move at a time: 16 bytes of what is computed with

  Matrix matrix(const void* data, int64_t rows, int64_t columns) const {
    return Matrix(data, call_.storage, rows, columns);
  }
  // Whether rows, and the bias, can be moved so many values at a time.
  bool has_vectors(const S* rows) const {
    return has_vector_rows<kVector>(rows, rows_.hidden_dim) &&
           (rows_.bias == nullptr || has_vector_rows<kVector>(rows_.bias, rows_.hidden_dim));
  }

  Error read_ids() { return token_keys(call_.ids, call_.vocab_size, projects_, &rows_.keys, library_, stream_); }

  template <int kWidth>
  Error sum_rows() {
    const TableShape shape = TableShape::of(rows_, kWidth);
    return launch(sum_table_rows<S, kWidth>, shape.blocks, shape.threads, 0, stream_, rows_, shape);
  }

  // Into `to`, or where that is null into memory of this call.
  Error gather(T invalid, S* to, const S** input) {
    if (to == nullptr) to = library_.allocate_values<S>(rows_.rows * width_);
    *input = to;
    const bool is_picked = call_.embedding == nullptr;
    const auto* embedding = static_cast<const S*>(is_picked ? call_.picked_rows : call_.embedding);
    const auto run = [&](auto width) {
      const int64_t count = rows_.rows * context_length_;
      const RowGrid grid = RowGrid::of(count, call_.embedding_dim / width(), kRowsPerThread);
      return launch(gather_embeddings<S, width()>, grid.blocks, grid.threads, 0, stream_, rows_.keys, count,
                    call_.embedding_dim, embedding, is_picked, invalid, to);
    };
    return has_vector_rows<kVectorWidth<S>>(embedding, call_.embedding_dim)
               ? run(std::integral_constant<int, kVectorWidth<S>>{})
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
      if (const Error error = projection_.table(&rows_.table)) return error;
    }
    T* gradient = library_.allocate_values<T>(projection_.table_rows() * rows_.hidden_dim);  // dP
    if (const Error error = scatter(gradient)) return error;
    return projection_.parameter_gradients(gradient, rows_.keys);
  }

  Error scatter(T* gradient) {
    const int64_t size = projection_.table_rows() * rows_.hidden_dim;
    const ScatterShape shape = ScatterShape::of(rows_.rows, projection_.table_rows(), rows_.hidden_dim, sizeof(T));
    if (shape.warps == 0) {
      T* rows = library_.allocate_values<T>(rows_.rows * rows_.hidden_dim);
      if (const Error error = run_activation_gradient(rows)) return error;
      return segmented_sum(rows_.keys, rows_.rows * context_length_, static_cast<const T*>(rows), context_length_,
                           rows_.hidden_dim, gradient, projection_.table_rows(), library_, stream_);
    }
    T* partial = shape.row_blocks == 1 ? gradient : library_.allocate_values<T>(shape.row_blocks * size);
    if (const Error error =
            launch(scatter_into_tables<S>, shape.row_blocks * shape.column_blocks, dim3(shape.warps * kWarp),
                   shape.shared_bytes(sizeof(T)), stream_, rows_, shape, partial)) {
      return error;
    }
    if (shape.row_blocks == 1) return cudaSuccess;
    return column_sums(static_cast<const T*>(partial), shape.row_blocks, size, size, false, gradient, library_,
                       stream_);
  }

  Error gather_backward() {
    const S* input = nullptr;
    if (call_.weight_gradient != nullptr || derivative_uses_input(rows_.activation)) {
      if (const Error error = gather(T(0), nullptr, &input)) return error;
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
    S* stored = static_cast<S*>(call_.embedding_gradient);
    T* result = computed_place(stored, size, library_);
    if (const Error error =
            segmented_sum(rows_.keys, rows_.rows * context_length_, static_cast<const S*>(input_gradient), 1,
                          call_.embedding_dim, result, call_.vocab_size, library_, stream_)) {
      return error;
    }
    return store_computed(result, size, stored, stream_);
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
  int64_t context_length_, width_;
  bool projects_;
  Projection<S> projection_;
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
