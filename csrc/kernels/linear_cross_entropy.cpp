#include "kernels/linear_cross_entropy.h"

#include <algorithm>

#include "kernels/host_library.h"
#include "kernels/product.h"

namespace charlm::cpu {
namespace {

// A chunk is 1/20 of the logits, but at least as many rows as can feed the products, and at most so many bytes.
constexpr int64_t kMinChunkRows = 64;
constexpr int64_t kChunkBytes = 64ll << 20;
// A block is 1/40 of the logits, unless classes are few.
constexpr int64_t kClassBlocks = 40;
constexpr int64_t kMinBlockClasses = 256;
// Values of a matrix that are worth waking a thread for.
constexpr int64_t kValueGrain = 1 << 16;

template <typename T>
class Run {
 public:
  explicit Run(const LinearCrossEntropy<T>& problem)
      : p_(problem), rows_(problem.loss.rows), classes_(problem.loss.classes), features_(problem.input.columns) {}

  // All logits in the memory of the weight's gradient: block s is a contiguous (N, block's classes) matrix at the start
  // of the rows of that gradient which belong to its classes.
  void in_weight_gradient() const {
    const int64_t block = std::min(classes_, std::max(kMinBlockClasses, (classes_ + kClassBlocks - 1) / kClassBlocks));
    const auto logits_block = [&](int64_t v, int64_t count) {
      return matrix(p_.weight_gradient + v * features_, rows_, count);
    };
    for_each_block(block, [&](int64_t v, int64_t count) { write_logits(p_.input, v, logits_block(v, count)); });

    CrossEntropy<T> loss = p_.loss;
    loss.input = {.data = p_.weight_gradient, .storage = kStorage, .block_classes = block};
    loss.input.block_stride = block * features_;
    loss.input_gradient = loss.input;
    cross_entropy(loss);

    const Workspace<T> copy(rows_ * block);
    for_each_block(block, [&](int64_t v, int64_t count) {
      copy_bytes(copy.data(), logits_block(v, count).data, sizeof(T) * rows_ * count);
      const Matrix gradient = matrix(copy.data(), rows_, count);
      add_to_input_gradient(gradient, v, p_.input_gradient);
      add_to_bias_gradient(gradient, v);
      multiply<T>(Write::kSet, matrix(p_.weight_gradient + v * features_, count, features_), gradient.transposed(),
                  p_.input);
    });
  }

  void in_chunks() const {
    const int64_t most = std::max(4 * kMinChunkRows, kChunkBytes / (classes_ * (int64_t)sizeof(T)));
    const int64_t chunk = std::min({rows_, std::max(kMinChunkRows, rows_ / 20), most});
    const Workspace<T> buffer(chunk * classes_);
    for (int64_t first = 0; first < rows_; first += chunk) {
      const int64_t rows = std::min(chunk, rows_ - first);
      const Matrix input = p_.input.rows_from(first, rows), logits = matrix(buffer.data(), rows, classes_);
      write_logits(input, 0, logits);

      CrossEntropy<T> loss = rows_from(p_.loss, first, rows);
      loss.input = {.data = buffer.data(), .storage = kStorage, .outer_stride = classes_};
      if (p_.input_gradient != nullptr || p_.weight_gradient != nullptr || p_.bias_gradient != nullptr) {
        loss.input_gradient = loss.input;
      }
      cross_entropy(loss);

      if (p_.input_gradient != nullptr) add_to_input_gradient(logits, 0, p_.input_gradient + first * features_);
      if (p_.weight_gradient != nullptr) {
        multiply<T>(first == 0 ? Write::kSet : Write::kAdd, matrix(p_.weight_gradient, classes_, features_),
                    logits.transposed(), input);
      }
      add_to_bias_gradient(logits, 0);
    }
  }

 private:
  static constexpr Storage kStorage = sizeof(T) == 8 ? Storage::kFloat64 : Storage::kFloat32;
  static Matrix matrix(T* data, int64_t rows, int64_t columns) { return {data, kStorage, rows, columns}; }

  // function(first class, classes) for each block of so many.
  template <typename Function>
  void for_each_block(int64_t block, const Function& function) const {
    for (int64_t v = 0; v < classes_; v += block) function(v, std::min(block, classes_ - v));
  }

  // logits = input weight^T + bias, for the classes from v on and the rows of both matrices.
  void write_logits(const Matrix& input, int64_t v, const Matrix& logits) const {
    multiply<T>(Write::kSet, logits, input, p_.weight.rows_from(v, logits.columns).transposed());
    if (p_.bias == nullptr) return;
    const T* bias = p_.bias + v;
    T* out = static_cast<T*>(logits.data);
    parallel_for(logits.rows, 1 + kValueGrain / logits.columns, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; ++n) {
        for (int64_t c = 0; c < logits.columns; ++c) out[n * logits.row_stride + c] += bias[c];
      }
    });
  }

  void add_to_input_gradient(const Matrix& gradient, int64_t v, T* out) const {
    if (p_.input_gradient == nullptr) return;
    multiply<T>(v == 0 ? Write::kSet : Write::kAdd, matrix(out, gradient.rows, features_), gradient,
                p_.weight.rows_from(v, gradient.columns));
  }

  // Sums over rows, in order whatever the number of threads.
  void add_to_bias_gradient(const Matrix& gradient, int64_t v) const {
    if (p_.bias_gradient == nullptr) return;
    const T* values = static_cast<const T*>(gradient.data);
    T* sums = p_.bias_gradient + v;
    const int64_t grain = kValueGrain / std::max<int64_t>(gradient.rows, 1);
    parallel_for_columns(gradient.columns, kVectorColumns, grain, [&](int64_t first, int64_t last) {
      for (int64_t n = 0; n < gradient.rows; ++n) {
        for (int64_t c = first; c < last; ++c) sums[c] += values[n * gradient.row_stride + c];
      }
    });
  }

  const LinearCrossEntropy<T>& p_;
  const int64_t rows_, classes_, features_;
};

}  // namespace

template <typename T>
void linear_cross_entropy(const LinearCrossEntropy<T>& problem) {
  const int64_t rows = problem.loss.rows, classes = problem.loss.classes, features = problem.input.columns;
  // Sums start from zero; the weight's only where no product will overwrite it.
  if (problem.bias_gradient != nullptr) fill_zero(problem.bias_gradient, classes * sizeof(T));
  if (problem.weight_gradient != nullptr && rows == 0)
    fill_zero(problem.weight_gradient, classes * features * sizeof(T));
  if (problem.input_gradient != nullptr && classes == 0) fill_zero(problem.input_gradient, rows * features * sizeof(T));
  if (rows == 0) return;
  if (classes == 0) return cross_entropy(problem.loss);
  const Run<T> run(problem);
  linear_cross_entropy_in_weight_gradient(problem) ? run.in_weight_gradient() : run.in_chunks();
}

template void linear_cross_entropy(const LinearCrossEntropy<float>&);
template void linear_cross_entropy(const LinearCrossEntropy<double>&);

}  // namespace charlm::cpu
