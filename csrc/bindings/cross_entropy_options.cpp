#include <cmath>
#include <limits>

#include "bindings/cross_entropy.h"

namespace charlm {
namespace {

// "[3]" or "[1, 2]": the position of a flat index.
std::string position_string(int64_t flat, torch::headeronly::IntHeaderOnlyArrayRef shape) {
  std::vector<int64_t> index(shape.size());
  for (size_t d = shape.size(); d-- > 0;) {
    index[d] = flat % shape[d];
    flat /= shape[d];
  }
  std::ostringstream stream;
  for (size_t d = 0; d < index.size(); ++d) stream << (d == 0 ? "[" : ", ") << index[d];
  if (!index.empty()) stream << ']';
  return stream.str();
}

// In double and in a fixed order, over partial sums that let the additions overlap.
template <typename T>
double sum_of(const T* values, int64_t count) {
  double partial[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) partial[lane] += values[i + lane];
  }
  for (; i < count; ++i) partial[i % 8] += values[i];
  double total = 0;
  for (double value : partial) total += value;
  return total;
}

template <typename T>
Tensor scalar_tensor(double value) {
  Tensor tensor = allocate({}, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
  *tensor.mutable_data_ptr<T>() = static_cast<T>(value);
  return tensor;
}

}  // namespace

CrossEntropyOptions cross_entropy_options(int64_t ignore_index, int64_t reduction, double label_smoothing,
                                          double softcap, double z_loss) {
  check(reduction >= 0 && reduction <= 2, "reduction must be 0 (none), 1 (mean) or 2 (sum), got ", reduction);
  check(label_smoothing >= 0 && label_smoothing <= 1, "label_smoothing must be between 0 and 1, got ", label_smoothing);
  check(softcap >= 0 && std::isfinite(softcap), "softcap must be positive and finite, or None, got ", softcap);
  check(z_loss >= 0 && std::isfinite(z_loss), "z_loss must be non-negative and finite, got ", z_loss);
  return {ignore_index, static_cast<Reduction>(reduction), label_smoothing, softcap, z_loss};
}

void check_ignores_nothing(const CrossEntropyOptions& options) {
  check(options.ignore_index < 0, "ignore_index is not supported for class probabilities, got ", options.ignore_index);
}

template <typename T>
void set_options(const CrossEntropyOptions& options, const OptionalTensor& weight, const Tensor& input,
                 OptionalTensor* holder, CrossEntropy<T>* problem) {
  problem->ignore_index = options.ignore_index;
  problem->label_smoothing = option_as<T>("label_smoothing", options.label_smoothing);
  problem->softcap = option_as<T>("softcap", options.softcap);
  problem->z_loss = option_as<T>("z_loss", options.z_loss);
  if (!weight.has_value()) return;
  check_same_device("weight", *weight, "input", input);
  check_floating("weight", *weight);
  check(weight->dim() == 1 && weight->size(0) == problem->classes, "weight must have shape (C=", problem->classes,
        ",), got ", ShapeString(*weight));
  *holder = contiguous_as(*weight, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
  problem->weight = (*holder)->template const_data_ptr<T>();
}

template <typename T>
void check_targets(const CrossEntropy<T>& problem, torch::headeronly::IntHeaderOnlyArrayRef shape) {
  if (problem.target == nullptr) return;
  // As unsigned numbers, negative classes are too large as well.
  const auto classes = static_cast<uint64_t>(problem.classes);
  const auto is_bad = [&](int64_t y) { return (static_cast<uint64_t>(y) >= classes) & (y != problem.ignore_index); };
  int64_t bad = 0;  // counted without a branch
  for (int64_t n = 0; n < problem.rows; ++n) bad += is_bad(problem.target[n]);
  if (bad == 0) [[likely]] {
    return;
  }
  int64_t n = 0;
  while (!is_bad(problem.target[n])) ++n;
  throw std::out_of_range(concatenate("target", position_string(n, shape), " = ", problem.target[n],
                                      " is out of range for ", problem.classes, " classes"));
}

template <typename T>
T denominator_of(const CrossEntropy<T>& problem, Reduction reduction) {
  if (reduction != Reduction::kMean) return 1;
  // Counted as torch counts them, by elements: 0 / 0 without classes.
  if (problem.target == nullptr) return problem.classes > 0 ? static_cast<T>(problem.rows) : static_cast<T>(NAN);
  if (problem.weight == nullptr) {
    int64_t count = 0;
    for (int64_t n = 0; n < problem.rows; ++n) count += problem.target[n] != problem.ignore_index;
    return static_cast<T>(count);
  }
  double total = 0;
  for (int64_t n = 0; n < problem.rows; ++n) {
    if (problem.target[n] != problem.ignore_index) total += problem.weight[problem.target[n]];
  }
  return static_cast<T>(total);
}

template <typename T>
Tensor reduce(const CrossEntropy<T>& problem, Reduction reduction, T denominator, const Tensor& row_loss,
              torch::headeronly::IntHeaderOnlyArrayRef shape) {
  if (reduction == Reduction::kNone) return torch::stable::view(row_loss, shape);
  // A mean over nothing is 0 / 0, NaN as in torch.
  return scalar_tensor<T>(sum_of(row_loss.const_data_ptr<T>(), problem.rows) / denominator);
}

template <typename T>
void set_lse(const Tensor& lse, CrossEntropy<T>* problem) {
  check(lse.numel() == 2 * problem->rows && lse.is_contiguous() && lse.element_size() == sizeof(T),
        "lse must be what the forward op returned, shape (2, ", problem->rows, "), got shape ", ShapeString(lse));
  check_memory("lse", lse);
  problem->shift = static_cast<T*>(lse.data_ptr());
  problem->log_sum = problem->shift + problem->rows;
}

template <typename T>
void set_upstream(const Tensor& grad_output, Reduction reduction, OptionalTensor* holder, CrossEntropy<T>* problem) {
  check_on_cpu("grad_output", grad_output);
  check_memory("grad_output", grad_output);
  *holder = contiguous_as(grad_output, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
  const T* values = (*holder)->template const_data_ptr<T>();
  const int64_t expected = reduction == Reduction::kNone ? problem->rows : 1;
  check(grad_output.numel() == expected, "grad_output must have ", expected, " elements, got shape ",
        ShapeString(grad_output));
  problem->scale = 1 / denominator_of(*problem, reduction);
  if (reduction == Reduction::kNone) {
    problem->row_scale = values;
  } else {
    problem->scale *= values[0];
  }
}

// Rows without classes: logsumexp is -inf, and there is no gradient to write.
template <typename T>
void write_rows_without_classes(const CrossEntropy<T>& problem) {
  if (problem.lse_is_known) return;
  for (int64_t n = 0; n < problem.rows; ++n) {
    const bool counts = problem.target == nullptr;  // no class index is one of none
    problem.loss[n] = counts && problem.z_loss != 0 ? std::numeric_limits<T>::infinity() : 0;
    problem.shift[n] = -std::numeric_limits<T>::infinity();
    problem.log_sum[n] = 0;
  }
}

template <typename T>
void run_tiles(const CrossEntropy<T>& problem) {
  if (problem.classes == 0) return write_rows_without_classes(problem);
  const int64_t tile_rows = cross_entropy_tile_rows(problem.classes);
  const int64_t tiles = (problem.rows + tile_rows - 1) / tile_rows;
  const auto run = cpu::select<cpu::CrossEntropyKernels<T>>().tiles;
  // About 64K exponentials are worth waking a thread for.
  const int64_t grain = 1 + 65536 / (tile_rows * problem.classes);
  parallel_for(tiles, grain, [&](int64_t first, int64_t last) {
    const Workspace<T> scratch(cpu::cross_entropy_scratch(problem));
    run(problem, first, last, scratch.data());
  });
}

#define CHARLM_INSTANTIATE(T)                                                                                  \
  template void set_options(const CrossEntropyOptions&, const OptionalTensor&, const Tensor&, OptionalTensor*, \
                            CrossEntropy<T>*);                                                                 \
  template void check_targets(const CrossEntropy<T>&, torch::headeronly::IntHeaderOnlyArrayRef);               \
  template T denominator_of(const CrossEntropy<T>&, Reduction);                                                \
  template Tensor reduce(const CrossEntropy<T>&, Reduction, T, const Tensor&,                                  \
                         torch::headeronly::IntHeaderOnlyArrayRef);                                            \
  template void set_lse(const Tensor&, CrossEntropy<T>*);                                                      \
  template void set_upstream(const Tensor&, Reduction, OptionalTensor*, CrossEntropy<T>*);                     \
  template void run_tiles(const CrossEntropy<T>&);
CHARLM_INSTANTIATE(float)
CHARLM_INSTANTIATE(double)
#undef CHARLM_INSTANTIATE

}  // namespace charlm
