#include "kernels/linear_log_probs.h"

#include <algorithm>

#include "kernels/host_library.h"

namespace charlm::cpu {
namespace {

// A block is 1/40 of the classes, but enough of them to feed the products, and whole vectors: of these, kept logits
// begin where a float may, even in memory of 16-bit numbers.
constexpr int64_t kClassBlocks = 40;
constexpr int64_t kMinBlockClasses = 256;
int64_t block_classes(int64_t classes) {
  const int64_t block = (classes / kClassBlocks + kVectorColumns) / kVectorColumns * kVectorColumns;
  return std::min(classes, std::max(kMinBlockClasses, block));
}
// A piece is 1/40 of the logits, or 1/20 where classes are few, and at most so many bytes; but it has enough rows.
constexpr int64_t kPieces = 20;
constexpr int64_t kMinPieceRows = 64;
constexpr int64_t kPieceBytes = 64ll << 20;

template <typename T>
class Pieces {
 public:
  explicit Pieces(const LinearLogProbs<T>& problem)
      : p_(problem),
        kept_(problem.kept_rows()),
        classes_(problem.log_probs.classes),
        block_(block_classes(classes_)),
        rows_(std::min(problem.log_probs.rows - kept_, most_rows())),
        buffer_(rows_ * block_) {}

  bool are_rows() const { return block_ == classes_; }
  int64_t block() const { return block_; }
  // Whether the chunk from this row on is that of the rows whose logits are kept.
  bool is_kept(int64_t first_row) const { return first_row < kept_; }
  int64_t kept_rows() const { return kept_; }

  // function(first row, layer, log_probs) for so many rows at a time, with those of the problem; first for those whose
  // logits are kept.
  template <typename Function>
  void for_each_chunk(const Function& function) const {
    for (int64_t first = 0, rows; first < p_.log_probs.rows; first += rows) {
      rows = is_kept(first) ? kept_ : std::min(rows_, p_.log_probs.rows - first);
      function(first, p_.layer.rows_from(first, rows), rows_from(p_.log_probs, first, rows));
    }
  }

  // function(first class, classes) for each block.
  template <typename Function>
  void for_each_block(const Function& function) const {
    for (int64_t v = 0; v < classes_; v += block_) function(v, std::min(block_, classes_ - v));
  }

  // Where the logits of a block are, for the rows of a chunk.
  Matrix logits(int64_t first_row, int64_t first_class, int64_t rows, int64_t classes) const {
    void* const data = is_kept(first_row) ? p_.logits.at(first_class * p_.logits.columns) : buffer_.data();
    return computed_matrix(static_cast<T*>(data), rows, classes);
  }

 private:
  int64_t most_rows() const {
    const int64_t part = p_.log_probs.rows * classes_ / kPieces / block_;
    const int64_t fitting = kPieceBytes / (block_ * static_cast<int64_t>(sizeof(T)));
    return std::max(kMinPieceRows, std::min(part, fitting));
  }

  const LinearLogProbs<T>& p_;
  const int64_t kept_, classes_, block_, rows_;
  const Workspace<T> buffer_;
};

// The problem of log_probs for these logits alone.
template <typename T>
LogProbs<T> of_logits(LogProbs<T> problem, const Matrix& logits) {
  problem.classes = logits.columns;
  problem.input = {.data = logits.data, .storage = logits.storage, .outer_stride = logits.row_stride};
  return problem;
}

}  // namespace

template <typename T>
void linear_log_probs(const LinearLogProbs<T>& problem) {
  if (problem.log_probs.rows == 0) return;
  if (problem.log_probs.classes == 0) return log_probs(problem.log_probs);
  const Pieces<T> pieces(problem);
  pieces.for_each_chunk([&](int64_t first_row, const OutputLayer<T>& layer, const LogProbs<T>& chunk) {
    if (pieces.are_rows()) {
      const Matrix logits = pieces.logits(first_row, 0, chunk.rows, chunk.classes);
      layer.write_logits(0, logits);
      return log_probs(of_logits(chunk, logits));
    }
    const Workspace<LogProbsRow<T>> sums(chunk.rows);
    const bool has_ids = chunk.ids_per_row > 0;
    const Workspace<T> first_inputs(has_ids ? chunk.rows : 0);
    if (has_ids) layer.write_chosen_logits(chunk.ids, chunk.ids_per_row, first_inputs.data());
    for (int64_t n = 0; n < chunk.rows; ++n) {
      sums.data()[n] = {};
      if (has_ids) sums.data()[n].first_input = first_inputs.data()[n];
    }
    pieces.for_each_block([&](int64_t v, int64_t classes) {
      const Matrix logits = pieces.logits(first_row, v, chunk.rows, classes);
      layer.write_logits(v, logits);
      add_classes(of_logits(chunk, logits), v, sums.data());
    });
    finish_log_probs(chunk, sums.data());
  });
}

// Blocks are the outer loop here, so that the weight's gradient of a block is whole at once, and stored as it has to
// be.
template <typename T>
void linear_log_probs_gradient(const LinearLogProbs<T>& problem) {
  const Matrix& weight_gradient = problem.weight_gradient;
  const bool wants_weight = weight_gradient.data != nullptr;
  const int64_t features = problem.layer.input.columns;
  problem.layer.clear_sums();
  if (wants_weight && problem.log_probs.rows == 0) {
    fill_zero(weight_gradient.data, weight_gradient.rows * features * storage_size(weight_gradient.storage));
  }
  if (problem.log_probs.rows == 0 || problem.log_probs.classes == 0) return;
  const Pieces<T> pieces(problem);
  const bool is_stored_apart = wants_weight && weight_gradient.storage != kStorageOf<T>;
  const Workspace<T> sums(is_stored_apart ? pieces.block() * features : 0);
  // The weight's gradient of a block goes where its logits are kept, from a gradient that is not there then.
  const Workspace<T> apart(pieces.kept_rows() * pieces.block());
  pieces.for_each_block([&](int64_t v, int64_t classes) {
    void* const stored = wants_weight ? weight_gradient.at(v * features) : nullptr;
    T* const weight_sums = is_stored_apart ? sums.data() : static_cast<T*>(stored);
    pieces.for_each_chunk([&](int64_t first_row, const OutputLayer<T>& layer, const LogProbs<T>& chunk) {
      const bool are_kept = pieces.is_kept(first_row);
      const Matrix logits = pieces.logits(first_row, v, chunk.rows, classes);
      if (!are_kept) layer.write_logits(v, logits);
      const Matrix gradient = are_kept ? computed_matrix(apart.data(), chunk.rows, classes) : logits;
      LogProbs<T> block = of_logits(chunk, logits);
      block.input_gradient = block.input;
      block.input_gradient.data = gradient.data;
      log_probs_gradient(block, v);
      layer.add_to_input_gradient(v, gradient);
      layer.add_to_bias_gradient(v, gradient);
      if (wants_weight) layer.write_weight_gradient(first_row == 0 ? Write::kSet : Write::kAdd, gradient, weight_sums);
    });
    if (is_stored_apart) store(weight_sums, classes * features, stored, weight_gradient.storage);
  });
}

template void linear_log_probs(const LinearLogProbs<float>&);
template void linear_log_probs(const LinearLogProbs<double>&);
template void linear_log_probs_gradient(const LinearLogProbs<float>&);
template void linear_log_probs_gradient(const LinearLogProbs<double>&);

}  // namespace charlm::cpu
