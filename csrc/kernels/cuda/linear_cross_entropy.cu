#include <type_traits>

#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/copy.cuh"
#include "kernels/cuda/cross_entropy_run.cuh"
#include "kernels/linear_cross_entropy.h"

namespace charlm::cuda {
namespace {

// One call, in the storage type of its matrices.
template <typename S>
class OutputLayer {
 public:
  using T = Compute<S>;

  OutputLayer(const LinearCrossEntropy<T>& problem, DeviceLibrary& library, Stream stream)
      : p_(problem),
        library_(library),
        stream_(stream),
        rows_(problem.loss.rows),
        classes_(problem.loss.classes),
        features_(problem.input.columns),
        stride_(linear_cross_entropy_stride(problem)),
        chunk_(rows_),
        has_gradient_(problem.input_gradient != nullptr || problem.weight_gradient != nullptr ||
                      problem.bias_gradient != nullptr) {
    const int64_t chunk = linear_cross_entropy_chunk_rows(problem);
    if (chunk < rows_) chunk_ = chunk;
  }

  Error run() {
    if (const Error error = prepare()) return error;
    for (int64_t first = 0; first < rows_; first += chunk_) {
      const int64_t rows = rows_ - first < chunk_ ? rows_ - first : chunk_;
      if (const Error error = run_chunk(first, rows)) return error;
    }
    return finish();
  }

 private:
  static constexpr bool kWidens = !std::is_same_v<S, T>;

  Error prepare() {
    if (const Error error = rows_ == 0 ? clear_sums() : place_sums()) return error;
    loss_ = p_.loss;
    run_.upstream = p_.upstream;
    logits_ = library_.allocate_values<S>(chunk_ * stride_);
    if (p_.mean && (has_gradient_ || p_.loss.probabilities_gradient.data != nullptr)) {
      if (const Error error = divide_by_denominator(&loss_, &run_, library_, stream_)) return error;
    }
    const int64_t last = chunk_ > 0 ? rows_ % chunk_ : 0;
    const int64_t whole = chunk_ > 0 ? rows_ / chunk_ : 0;
    const CrossEntropy<T> of_chunk = problem_of(0, chunk_), of_last = problem_of(0, last);
    const int64_t values = cross_entropy_split_values(of_chunk), last_values = cross_entropy_split_values(of_last);
    run_.split_rows = library_.allocate_values<T>(values > last_values ? values : last_values);
    if (p_.total_loss == nullptr) return cudaSuccess;
    parts_ = whole * cross_entropy_parts(of_chunk) + (last > 0 ? cross_entropy_parts(of_last) : 0);
    loss_parts_ = run_.loss_parts = library_.allocate_values<T>(parts_);
    weight_parts_ = run_.weight_parts = library_.allocate_values<T>(parts_);
    return cudaSuccess;
  }

  S* weight_gradient() const { return static_cast<S*>(p_.weight_gradient); }
  S* bias_gradient() const { return static_cast<S*>(p_.bias_gradient); }

  Error clear_sums() {
    if (p_.weight_gradient != nullptr) {
      if (const Error error = clear(weight_gradient(), classes_ * features_, stream_)) return error;
    }
    return p_.bias_gradient != nullptr ? clear(bias_gradient(), classes_, stream_) : cudaSuccess;
  }

  Error place_sums() {
    // A single product can write the weight's gradient as it is stored: it adds up in float32 all the same.
    if (p_.weight_gradient != nullptr && (!kWidens || rows_ != chunk_)) {
      weight_sums_ = computed_place(weight_gradient(), classes_ * features_, library_);
    }
    if (p_.bias_gradient != nullptr) bias_sums_ = computed_place(bias_gradient(), classes_, library_);
    return cudaSuccess;
  }

  CrossEntropy<T> problem_of(int64_t first, int64_t rows) const {
    CrossEntropy<T> part = rows_from(loss_, first, rows);
    part.input = {};
    part.input.data = logits_;
    part.input.storage = p_.input.storage;
    part.input.outer_stride = stride_;
    part.input_gradient = part.input;
    if (!has_gradient_) part.input_gradient.data = nullptr;
    return part;
  }

  Error run_chunk(int64_t first, int64_t rows) {
    const Matrix input = p_.input.rows_from(first, rows);
    const Matrix logits(logits_, p_.input.storage, rows, classes_, stride_, 1);
    if (p_.bias == nullptr) {
      library_.multiply(logits, input, p_.weight.transposed());
    } else {
      library_.multiply_add(logits, Matrix(p_.bias, p_.input.storage, 1, classes_), input, p_.weight.transposed());
    }

    const CrossEntropy<T> loss = problem_of(first, rows);
    if (p_.row_loss != nullptr) run_.row_loss = p_.row_loss + first;
    if (const Error error = run_cross_entropy(loss, run_, stream_)) return error;
    if (run_.loss_parts != nullptr) {
      run_.loss_parts += cross_entropy_parts(loss);
      run_.weight_parts += cross_entropy_parts(loss);
    }

    if (p_.input_gradient != nullptr) {
      S* gradient = static_cast<S*>(p_.input_gradient) + first * features_;
      library_.multiply(Matrix(gradient, p_.input.storage, rows, features_), logits, p_.weight);
    }
    if (p_.weight_gradient != nullptr) add_to_weight_gradient(first, logits, input);
    if (bias_sums_ == nullptr) return cudaSuccess;
    return column_sums(static_cast<const S*>(logits_), rows, classes_, stride_, first > 0, bias_sums_, library_,
                       stream_);
  }

  void add_to_weight_gradient(int64_t first, const Matrix& logits, const Matrix& input) {
    if (weight_sums_ == nullptr) {
      library_.multiply(Matrix(p_.weight_gradient, p_.input.storage, classes_, features_), logits.transposed(), input);
      return;
    }
    const Matrix sums(weight_sums_, kComputeStorage<S>, classes_, features_);
    if (first == 0) {
      library_.multiply(sums, logits.transposed(), input);
    } else {
      library_.multiply_add(sums, sums, logits.transposed(), input);
    }
  }

  Error finish() {
    if (weight_sums_ != nullptr) {
      const Error error = store_computed(weight_sums_, classes_ * features_, weight_gradient(), stream_);
      if (error != cudaSuccess) return error;
    }
    if (bias_sums_ != nullptr) {
      if (const Error error = store_computed(bias_sums_, classes_, bias_gradient(), stream_)) return error;
    }
    if (p_.total_loss == nullptr) return cudaSuccess;
    return reduce_cross_entropy<T>(loss_parts_, p_.mean ? weight_parts_ : nullptr, parts_, p_.total_loss,
                                   run_.denominator == nullptr ? loss_.denominator : nullptr, stream_);
  }

  const LinearCrossEntropy<T>& p_;
  DeviceLibrary& library_;
  Stream stream_;
  int64_t rows_, classes_, features_, stride_, chunk_;
  bool has_gradient_;
  T *weight_sums_ = nullptr, *bias_sums_ = nullptr;
  S* logits_ = nullptr;
  int64_t parts_ = 0;
  T *loss_parts_ = nullptr, *weight_parts_ = nullptr;
  CrossEntropy<T> loss_;
  CrossEntropyRun<T> run_;
};

}  // namespace

template <typename T>
Error linear_cross_entropy(const LinearCrossEntropy<T>& problem, DeviceLibrary& library, Stream stream) {
  return with_storage<T>(problem.input.storage,
                         [&](auto type) { return OutputLayer<decltype(type)>(problem, library, stream).run(); });
}

template Error linear_cross_entropy(const LinearCrossEntropy<float>&, DeviceLibrary&, Stream);
template Error linear_cross_entropy(const LinearCrossEntropy<double>&, DeviceLibrary&, Stream);

}  // namespace charlm::cuda
