#include "kernels/linear_log_probs.h"

#include <algorithm>

#include "kernels/host_library.h"

namespace charlm::cpu {
namespace {

// A block is 1/40 of the classes, but enough of them to feed the products.
constexpr int64_t kClassBlocks = 40;
constexpr int64_t kMinBlockClasses = 256;
// A piece is 1/40 of the logits, or 1/20 where classes are few, and at most so many bytes; but it has enough rows.
constexpr int64_t kPieces = 20;
constexpr int64_t kMinPieceRows = 64;
constexpr int64_t kPieceBytes = 64ll << 20;

template <typename T>
class Pieces {
 public:
  explicit Pieces(const LinearLogProbs<T>& problem)
      : p_(problem),
        classes_(problem.log_probs.classes),
        block_(std::min(classes_, std::max(kMinBlockClasses, (classes_ + kClassBlocks - 1) / kClassBlocks))),
        rows_(std::min(problem.log_probs.rows, most_rows())),
        buffer_(rows_ * block_) {}

  bool are_rows() const { return block_ == classes_; }

  // function(first row, layer, log_probs) for so many rows at a time, with those of the problem.
  template <typename Function>
  void for_each_chunk(const Function& function) const {
    for (int64_t first = 0; first < p_.log_probs.rows; first += rows_) {
      const int64_t rows = std::min(rows_, p_.log_probs.rows - first);
      function(first, p_.layer.rows_from(first, rows), rows_from(p_.log_probs, first, rows));
    }
  }

  // function(first class, logits, log_probs) for each block of a chunk, with its logits as the input of log_probs.
  template <typename Function>
  void for_each_block(const OutputLayer<T>& layer, LogProbs<T> log_probs, const Function& function) const {
    for (int64_t v = 0; v < classes_; v += block_) {
      log_probs.classes = std::min(block_, classes_ - v);
      const Matrix logits = computed_matrix(buffer_.data(), log_probs.rows, log_probs.classes);
      layer.write_logits(v, logits);
      log_probs.input = {.data = buffer_.data(), .storage = kStorageOf<T>, .outer_stride = log_probs.classes};
      function(v, logits, log_probs);
    }
  }

 private:
  int64_t most_rows() const {
    const int64_t part = p_.log_probs.rows * classes_ / kPieces / block_;
    const int64_t fitting = kPieceBytes / (block_ * static_cast<int64_t>(sizeof(T)));
    return std::max(kMinPieceRows, std::min(part, fitting));
  }

  const LinearLogProbs<T>& p_;
  const int64_t classes_, block_, rows_;
  const Workspace<T> buffer_;
};

}  // namespace

template <typename T>
void linear_log_probs(const LinearLogProbs<T>& problem) {
  if (problem.log_probs.rows == 0) return;
  if (problem.log_probs.classes == 0) return log_probs(problem.log_probs);
  const Pieces<T> pieces(problem);
  pieces.for_each_chunk([&](int64_t, const OutputLayer<T>& layer, const LogProbs<T>& chunk) {
    if (pieces.are_rows()) {
      pieces.for_each_block(layer, chunk, [&](int64_t, const Matrix&, const LogProbs<T>& block) { log_probs(block); });
      return;
    }
    const Workspace<LogProbsRow<T>> sums(chunk.rows);
    const Workspace<T> first_inputs(chunk.ids_per_row > 0 ? chunk.rows : 0);
    if (chunk.ids_per_row > 0) layer.write_chosen_logits(chunk.ids, chunk.ids_per_row, first_inputs.data());
    for (int64_t n = 0; n < chunk.rows; ++n) {
      sums.data()[n] = {};
      if (chunk.ids_per_row > 0) sums.data()[n].first_input = first_inputs.data()[n];
    }
    pieces.for_each_block(layer, chunk, [&](int64_t first_class, const Matrix&, const LogProbs<T>& block) {
      add_classes(block, first_class, sums.data());
    });
    finish_log_probs(chunk, sums.data());
  });
}

template <typename T>
void linear_log_probs_gradient(const LinearLogProbs<T>& problem) {
  problem.layer.clear_sums();
  if (problem.log_probs.rows == 0 || problem.log_probs.classes == 0) return;
  const Pieces<T> pieces(problem);
  pieces.for_each_chunk([&](int64_t first_row, const OutputLayer<T>& layer, const LogProbs<T>& chunk) {
    pieces.for_each_block(layer, chunk, [&](int64_t first_class, const Matrix& logits, LogProbs<T> block) {
      block.input_gradient = block.input;
      log_probs_gradient(block, first_class);
      layer.add_to_input_gradient(first_class, logits);
      layer.write_weight_gradient(first_row == 0 ? Write::kSet : Write::kAdd, first_class, logits);
      layer.add_to_bias_gradient(first_class, logits);
    });
  });
}

template void linear_log_probs(const LinearLogProbs<float>&);
template void linear_log_probs(const LinearLogProbs<double>&);
template void linear_log_probs_gradient(const LinearLogProbs<float>&);
template void linear_log_probs_gradient(const LinearLogProbs<double>&);

}  // namespace charlm::cpu
