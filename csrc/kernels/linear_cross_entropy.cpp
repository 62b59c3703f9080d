#include "kernels/linear_cross_entropy.h"

#include <algorithm>

#include "kernels/host_library.h"

namespace charlm::cpu {
namespace {

// A chunk is 1/20 of the logits, but at least as many rows as can feed the products, and at most so many bytes.
constexpr int64_t kMinChunkRows = 64;
constexpr int64_t kChunkBytes = 64ll << 20;
// A block is 1/40 of the logits, unless classes are few.
constexpr int64_t kClassBlocks = 40;
constexpr int64_t kMinBlockClasses = 256;
// Of a half-precision weight, in float32 at a time.
constexpr int64_t kConvertBytes = 8ll << 20;
// Values of a matrix that are worth waking a thread for.
constexpr int64_t kValueGrain = 1 << 16;

// The result is cut into tiles by shape alone, each computed by one thread: the same bits for any number of threads,
// which torch's own threading does not give.
constexpr int64_t kTileRows = 128, kTileColumns = 256;

enum class Write { kSet, kAdd };

// out = a b, or out += a b.
void multiply(Write write, const Matrix& out, const Matrix& a, const Matrix& b) {
  if (a.columns == 0 && write == Write::kSet) {
    for (int64_t r = 0; r < out.rows; ++r)
      fill_zero(out.at(r * out.row_stride), out.columns * storage_size(out.storage));
  }
  if (a.columns == 0) return;
  const int64_t down = (out.rows + kTileRows - 1) / kTileRows, across = (out.columns + kTileColumns - 1) / kTileColumns;
  parallel_for(down * across, 1, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t r = tile / across * kTileRows, c = tile % across * kTileColumns;
      const int64_t rows = std::min(kTileRows, out.rows - r), columns = std::min(kTileColumns, out.columns - c);
      (write == Write::kSet ? host::multiply : host::multiply_add)(out.rows_from(r, rows).columns_from(c, columns),
                                                                   a.rows_from(r, rows), b.columns_from(c, columns));
    }
  });
}

template <typename T>
class Run {
 public:
  explicit Run(const LinearCrossEntropy<T>& problem)
      : p_(problem), rows_(problem.loss.rows), classes_(problem.loss.classes), features_(problem.input.columns) {}

  // All logits in the memory of the weight's gradient: block s is a contiguous (N, block's classes) matrix at the start
  // of the rows of that gradient which belong to its classes.
  void in_weight_gradient() const {
    const int64_t block = at_a_time(std::max(kMinBlockClasses, (classes_ + kClassBlocks - 1) / kClassBlocks));
    const auto logits_block = [&](int64_t v, int64_t count) {
      return matrix(p_.weight_gradient + v * features_, rows_, count);
    };
    for_each_weight(block, [&](int64_t v, int64_t count, const Matrix& weight) {
      write_logits(p_.input, v, weight, logits_block(v, count));
    });

    CrossEntropy<T> loss = p_.loss;
    loss.input = {.data = p_.weight_gradient, .storage = kStorage, .block_classes = block};
    loss.input.block_stride = block * features_;
    loss.input_gradient = loss.input;
    cross_entropy(loss);

    const Workspace<T> copy(rows_ * block);
    for_each_weight(block, [&](int64_t v, int64_t count, const Matrix& weight) {
      copy_bytes(copy.data(), logits_block(v, count).data, sizeof(T) * rows_ * count);
      const Matrix gradient = matrix(copy.data(), rows_, count);
      add_to_input_gradient(gradient, v, weight, p_.input_gradient);
      add_to_bias_gradient(gradient, v);
      multiply(Write::kSet, matrix(p_.weight_gradient + v * features_, count, features_), gradient.transposed(),
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
      for_each_weight(at_a_time(classes_), [&](int64_t v, int64_t count, const Matrix& weight) {
        write_logits(input, v, weight, logits.columns_from(v, count));
      });

      CrossEntropy<T> loss = rows_from(p_.loss, first, rows);
      loss.input = {.data = buffer.data(), .storage = kStorage, .outer_stride = classes_};
      if (p_.input_gradient != nullptr || p_.weight_gradient != nullptr || p_.bias_gradient != nullptr) {
        loss.input_gradient = loss.input;
      }
      cross_entropy(loss);

      if (p_.input_gradient != nullptr) {
        for_each_weight(at_a_time(classes_), [&](int64_t v, int64_t count, const Matrix& weight) {
          add_to_input_gradient(logits.columns_from(v, count), v, weight, p_.input_gradient + first * features_);
        });
      }
      if (p_.weight_gradient != nullptr) {
        multiply(first == 0 ? Write::kSet : Write::kAdd, matrix(p_.weight_gradient, classes_, features_),
                 logits.transposed(), input);
      }
      add_to_bias_gradient(logits, 0);
    }
  }

 private:
  static constexpr Storage kStorage = sizeof(T) == 8 ? Storage::kFloat64 : Storage::kFloat32;
  static Matrix matrix(T* data, int64_t rows, int64_t columns) { return {data, kStorage, rows, columns}; }

  bool converts() const { return p_.weight.storage != kStorage; }
  // The classes of a block of the weight, of so many or as many as are converted at a time.
  int64_t at_a_time(int64_t block) const {
    const int64_t most = kConvertBytes / (int64_t)sizeof(T) / std::max<int64_t>(1, features_);
    return std::min({block, classes_, converts() ? std::max<int64_t>(1, most) : block});
  }
  // function(first class, classes, (classes, D) weight of type T), over all classes, a block at a time: of a converted
  // copy where the weight is stored in half precision.
  template <typename Function>
  void for_each_weight(int64_t block, const Function& function) const {
    const Workspace<T> copy(converts() ? block * features_ : 0);
    for (int64_t v = 0; v < classes_; v += block) {
      const int64_t count = std::min(block, classes_ - v);
      Matrix weight = p_.weight.rows_from(v, count);
      if (converts()) {
        const Matrix converted = matrix(copy.data(), count, features_);
        host::copy(converted, weight);
        weight = converted;
      }
      function(v, count, weight);
    }
  }

  // logits = input weight^T + bias, for classes [v, v + count) and the rows of both matrices.
  void write_logits(const Matrix& input, int64_t v, const Matrix& weight, const Matrix& logits) const {
    multiply(Write::kSet, logits, input, weight.transposed());
    if (p_.bias == nullptr) return;
    const T* bias = p_.bias + v;
    T* out = static_cast<T*>(logits.data);
    parallel_for(logits.rows, 1 + kValueGrain / logits.columns, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; ++n) {
        for (int64_t c = 0; c < logits.columns; ++c) out[n * logits.row_stride + c] += bias[c];
      }
    });
  }

  void add_to_input_gradient(const Matrix& gradient, int64_t v, const Matrix& weight, T* out) const {
    if (p_.input_gradient == nullptr) return;
    multiply(v == 0 ? Write::kSet : Write::kAdd, matrix(out, gradient.rows, features_), gradient, weight);
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
