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

// All logits in the memory of the weight's gradient: block s is a contiguous (N, block's classes) matrix at the start
// of the rows of that gradient which belong to its classes.
template <typename T>
void in_weight_gradient(const LinearCrossEntropy<T>& problem) {
  const OutputLayer<T>& layer = problem.layer;
  CrossEntropy<T> loss = problem.loss;
  const int64_t rows = loss.rows, classes = loss.classes, features = layer.input.columns;
  const int64_t block = std::min(classes, std::max(kMinBlockClasses, (classes + kClassBlocks - 1) / kClassBlocks));
  // function(first class, logits) for each block.
  const auto for_each_block = [&](const auto& function) {
    for (int64_t v = 0; v < classes; v += block) {
      function(v, computed_matrix(problem.weight_gradient + v * features, rows, std::min(block, classes - v)));
    }
  };
  for_each_block([&](int64_t v, const Matrix& logits) { layer.write_logits(v, logits); });

  loss.input = {.data = problem.weight_gradient, .storage = kStorageOf<T>, .block_classes = block};
  loss.input.block_stride = block * features;
  loss.input_gradient = loss.input;
  cross_entropy(loss);

  const Workspace<T> copy(rows * block);
  for_each_block([&](int64_t v, const Matrix& logits) {
    const Matrix gradient = computed_matrix(copy.data(), rows, logits.columns);
    copy_bytes(copy.data(), logits.data, sizeof(T) * rows * logits.columns);
    layer.add_to_input_gradient(v, gradient);
    layer.add_to_bias_gradient(v, gradient);
    layer.write_weight_gradient(Write::kSet, gradient, problem.weight_gradient + v * features);
  });
}

template <typename T>
void in_chunks(const LinearCrossEntropy<T>& problem) {
  const OutputLayer<T>& layer = problem.layer;
  const int64_t all_rows = problem.loss.rows, classes = problem.loss.classes;
  const bool has_gradient =
      layer.input_gradient != nullptr || problem.weight_gradient != nullptr || layer.bias_gradient != nullptr;
  const int64_t most = std::max(4 * kMinChunkRows, kChunkBytes / (classes * (int64_t)sizeof(T)));
  const int64_t chunk = std::min({all_rows, std::max(kMinChunkRows, all_rows / 20), most});
  const Workspace<T> buffer(chunk * classes);
  for (int64_t first = 0; first < all_rows; first += chunk) {
    const int64_t rows = std::min(chunk, all_rows - first);
    const OutputLayer<T> part = layer.rows_from(first, rows);
    const Matrix logits = computed_matrix(buffer.data(), rows, classes);
    part.write_logits(0, logits);

    CrossEntropy<T> loss = rows_from(problem.loss, first, rows);
    loss.input = {.data = buffer.data(), .storage = kStorageOf<T>, .outer_stride = classes};
    if (has_gradient) loss.input_gradient = loss.input;
    cross_entropy(loss);

    part.add_to_input_gradient(0, logits);
    if (problem.weight_gradient != nullptr) {
      part.write_weight_gradient(first == 0 ? Write::kSet : Write::kAdd, logits, problem.weight_gradient);
    }
    part.add_to_bias_gradient(0, logits);
  }
}

}  // namespace

template <typename T>
void linear_cross_entropy(const LinearCrossEntropy<T>& problem) {
  problem.layer.clear_sums();
  if (problem.weight_gradient != nullptr && problem.loss.rows == 0) {
    fill_zero(problem.weight_gradient, problem.loss.classes * problem.layer.input.columns * sizeof(T));
  }
  if (problem.loss.rows == 0) return;
  if (problem.loss.classes == 0) return cross_entropy(problem.loss);
  linear_cross_entropy_in_weight_gradient(problem) ? in_weight_gradient(problem) : in_chunks(problem);
}

template void linear_cross_entropy(const LinearCrossEntropy<float>&);
template void linear_cross_entropy(const LinearCrossEntropy<double>&);

}  // namespace charlm::cpu
