// cross_entropy(input weight^T + bias, target) without its (N, C) logits: products by torch, the loss and its gradient
// by the cross-entropy kernel, on a bounded piece of the logits at a time.
//
// Two ways to bound the piece. Where the weight's gradient is wanted and has room for all logits (N <= D), they are
// computed into its memory, a block of classes at a time, and each block's gradient replaces them at the end: three
// full products, and extra memory for one block. Otherwise rows go in chunks.
#include <algorithm>

#include "bindings/layers.h"
#include "bindings/linear_cross_entropy_arguments.h"

namespace charlm {
namespace {

// A chunk is 1/20 of the logits, but at least as many rows as can feed the products, and at most so many bytes.
constexpr int64_t kMinChunkRows = 64;
constexpr int64_t kChunkBytes = 64ll << 20;
// A block is 1/40 of the logits, unless classes are few.
constexpr int64_t kClassBlocks = 40;
constexpr int64_t kMinBlockClasses = 256;
// Of a half-precision weight, in float32 at a time.
constexpr int64_t kConvertBytes = 8ll << 20;

struct Wanted {
  bool input, weight, bias, target;
};

// float16 and bfloat16 inputs as float32.
template <typename T>
using Problem = LinearCrossEntropyArguments<T>;

template <typename T>
constexpr ScalarType kComputeType = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

template <typename T>
Problem<T> read_arguments(const Tensor& input, const Tensor& linear_weight, const Tensor& target,
                          const OptionalTensor& linear_bias, const OptionalTensor& weight,
                          const CrossEntropyOptions& options) {
  Problem<T> problem = read_linear_cross_entropy_arguments<T>(input, linear_weight, target, linear_bias, weight,
                                                              options, kComputeType<T>);
  check_on_cpu("target", target);
  check_targets(problem.loss, target.sizes());
  return problem;
}

// function(first class, classes, (classes, D) weight in the compute dtype), over all classes: one call, or blocks of a
// converted copy where the weight is stored in half precision.
template <typename T, typename Function>
void for_each_weight(const Problem<T>& problem, int64_t block, const Function& function) {
  if (problem.weight.scalar_type() != kComputeType<T>) {
    block = std::min(block,
                     std::max<int64_t>(1, kConvertBytes / (int64_t)sizeof(T) / std::max<int64_t>(1, problem.features)));
  }
  for (int64_t v = 0; v < problem.classes; v += block) {
    const int64_t count = std::min(block, problem.classes - v);
    const Tensor rows = rows_of(problem.weight, v, v + count);
    function(v, count, rows.scalar_type() == kComputeType<T> ? rows : contiguous_as(rows, kComputeType<T>));
  }
}

// logits = input weight^T + bias, for classes [v, v + count) and the rows of both matrices.
template <typename T>
void logits_of(const Problem<T>& problem, const Tensor& input, int64_t v, const Tensor& weight, const Tensor& logits) {
  multiply(logits, input, transposed(weight));
  if (!problem.bias.has_value()) return;
  const T* bias = problem.bias->template const_data_ptr<T>() + v;
  T* out = static_cast<T*>(logits.mutable_data_ptr());
  const int64_t rows = logits.size(0), count = logits.size(1), stride = logits.stride(0);
  parallel_for(rows, 1 + 65536 / count, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) {
      for (int64_t c = 0; c < count; ++c) out[n * stride + c] += bias[c];
    }
  });
}

// sums[c] += sum_n matrix[n][c], rows in order whatever the number of threads.
template <typename T>
void add_column_sums(const Tensor& matrix, T* sums) {
  const T* values = matrix.const_data_ptr<T>();
  const int64_t rows = matrix.size(0), columns = matrix.size(1), stride = matrix.stride(0);
  const int64_t grain = 65536 / std::max<int64_t>(rows, 1);
  parallel_for_columns(columns, kVectorColumns, grain, [&](int64_t first, int64_t last) {
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t c = first; c < last; ++c) sums[c] += values[n * stride + c];
    }
  });
}

// In the compute dtype (target: its own), two-dimensional; empty where not wanted.
struct Gradients {
  Tensor input, weight, bias, target;
};

template <typename T>
Gradients allocate_gradients(const Problem<T>& problem, const Wanted& wanted) {
  const auto matrix = [](bool want, int64_t rows, int64_t columns, ScalarType type) {
    return want ? allocate({rows, columns}, type) : allocate({0}, type);
  };
  constexpr ScalarType type = kComputeType<T>;
  Gradients gradients{matrix(wanted.input, problem.rows, problem.features, type),
                      matrix(wanted.weight, problem.classes, problem.features, type),
                      matrix(wanted.bias, 1, problem.classes, type),
                      matrix(wanted.target, problem.rows, problem.classes, problem.target.scalar_type())};
  // Sums start from zero; the weight's only where no product will overwrite it.
  const auto clear = [](const Tensor& t) { fill_zero(t.mutable_data_ptr(), t.numel() * t.element_size()); };
  if (wanted.bias) clear(gradients.bias);
  if (wanted.weight && problem.rows == 0) clear(gradients.weight);
  if (wanted.input && problem.classes == 0) clear(gradients.input);
  return gradients;
}

// All logits in the memory of the weight's gradient: block s is a contiguous (N, block's classes) matrix at the start
// of the rows of that gradient which belong to its classes.
template <typename T>
void run_in_weight_gradient(const Problem<T>& problem, const Wanted& wanted, const Gradients& gradients) {
  const int64_t block = std::max(kMinBlockClasses, (problem.classes + kClassBlocks - 1) / kClassBlocks);
  const auto logits_block = [&](int64_t v, int64_t count) {
    return matrix_view(gradients.weight, v * problem.features, problem.rows, count, count);
  };
  for_each_weight(problem, block, [&](int64_t v, int64_t count, const Tensor& weight) {
    logits_of(problem, problem.input, v, weight, logits_block(v, count));
  });

  CrossEntropy<T> loss = problem.loss;
  loss.input.data = gradients.weight.mutable_data_ptr();
  loss.input.storage = storage_of(gradients.weight);
  loss.input.block_classes = block;
  loss.input.block_stride = block * problem.features;
  loss.input_gradient = loss.input;
  run_tiles(loss);

  const Tensor copy = allocate({problem.rows * std::min(block, problem.classes)}, kComputeType<T>);
  for_each_weight(problem, block, [&](int64_t v, int64_t count, const Tensor& weight) {
    const Tensor in_place = logits_block(v, count);
    const Tensor gradient = matrix_view(copy, 0, problem.rows, count, count);
    copy_bytes(gradient.mutable_data_ptr(), in_place.const_data_ptr(), sizeof(T) * problem.rows * count);
    if (wanted.input) (v == 0 ? multiply : multiply_add)(gradients.input, gradient, weight);
    if (wanted.bias) add_column_sums(gradient, gradients.bias.template mutable_data_ptr<T>() + v);
    multiply(rows_of(gradients.weight, v, v + count), transposed(gradient), problem.input);
  });
}

template <typename T>
void run_in_chunks(const Problem<T>& problem, const Wanted& wanted, const Gradients& gradients) {
  const int64_t most = std::max(4 * kMinChunkRows, kChunkBytes / (problem.classes * (int64_t)sizeof(T)));
  const int64_t chunk = std::min({problem.rows, std::max(kMinChunkRows, problem.rows / 20), most});
  const Tensor buffer = allocate({chunk, problem.classes}, kComputeType<T>);
  for (int64_t first = 0; first < problem.rows; first += chunk) {
    const int64_t rows = std::min(chunk, problem.rows - first);
    const Tensor input = rows_of(problem.input, first, first + rows);
    const auto columns = [&](int64_t v, int64_t count) { return matrix_view(buffer, v, rows, count, problem.classes); };
    for_each_weight(problem, problem.classes, [&](int64_t v, int64_t count, const Tensor& weight) {
      logits_of(problem, input, v, weight, columns(v, count));
    });

    CrossEntropy<T> loss = rows_from(problem.loss, first, rows);
    loss.input.data = buffer.mutable_data_ptr();
    loss.input.storage = storage_of(buffer);
    loss.input.outer_stride = problem.classes;
    if (wanted.input || wanted.weight || wanted.bias) loss.input_gradient = loss.input;
    run_tiles(loss);

    const Tensor gradient = columns(0, problem.classes);
    if (wanted.input) {
      const Tensor out = rows_of(gradients.input, first, first + rows);
      for_each_weight(problem, problem.classes, [&](int64_t v, int64_t count, const Tensor& weight) {
        (v == 0 ? multiply : multiply_add)(out, columns(v, count), weight);
      });
    }
    if (wanted.weight) (first == 0 ? multiply : multiply_add)(gradients.weight, transposed(gradient), input);
    if (wanted.bias) add_column_sums(gradient, gradients.bias.template mutable_data_ptr<T>());
  }
}

template <typename T>
void run(const char* in_weight_gradient, const char* in_chunks, const Problem<T>& problem, const Wanted& wanted,
         const Gradients& gradients) {
  const bool fits = wanted.weight && problem.rows <= problem.features;
  took_branch(fits ? in_weight_gradient : in_chunks);
  if (problem.rows == 0) return;
  if (problem.classes == 0) return run_tiles(problem.loss);
  fits ? run_in_weight_gradient(problem, wanted, gradients) : run_in_chunks(problem, wanted, gradients);
}

Tensor finished(const Tensor& gradient, bool wanted, torch::headeronly::IntHeaderOnlyArrayRef shape, ScalarType type) {
  if (!wanted) return allocate({0}, type);
  return contiguous_as(torch::stable::view(gradient, shape), type);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_forward(
    const Tensor input, const Tensor linear_weight, const Tensor target, const OptionalTensor linear_bias,
    const OptionalTensor weight, int64_t ignore_index, int64_t reduction, double label_smoothing, double softcap,
    double z_loss, bool input_gradient, bool weight_gradient, bool bias_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  const Wanted wanted{input_gradient, weight_gradient, bias_gradient, false};
  const ScalarType type = input.scalar_type();
  std::optional<std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>> result;
  dispatch_compute_type(input, [&](auto compute) {
    using T = decltype(compute);
    Problem<T> problem = read_arguments<T>(input, linear_weight, target, linear_bias, weight, options);
    const Tensor row_loss = allocate({problem.rows}, kComputeType<T>),
                 lse = allocate({2, problem.rows}, kComputeType<T>);
    problem.loss.loss = row_loss.template mutable_data_ptr<T>();
    set_lse(lse, &problem.loss);
    const T denominator = denominator_of(problem.loss, options.reduction);
    problem.loss.scale = 1 / denominator;
    const Gradients gradients = allocate_gradients(problem, wanted);
    run("linear_cross_entropy_forward/in_weight_gradient", "linear_cross_entropy_forward/chunks", problem, wanted,
        gradients);
    const torch::headeronly::IntHeaderOnlyArrayRef row_shape(input.sizes().data(), input.dim() - 1);
    result.emplace(reduce(problem.loss, options.reduction, denominator, row_loss, row_shape), lse,
                   finished(gradients.input, input_gradient, input.sizes(), type),
                   finished(gradients.weight, weight_gradient, linear_weight.sizes(), type),
                   finished(gradients.bias, bias_gradient, {&problem.classes, 1}, type));
  });
  return *result;
}

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor grad_output, const Tensor input,
                                                    const Tensor linear_weight, const Tensor target,
                                                    const OptionalTensor linear_bias, const OptionalTensor weight,
                                                    const Tensor lse, int64_t ignore_index, int64_t reduction,
                                                    double label_smoothing, double softcap, double z_loss,
                                                    bool input_gradient, bool weight_gradient, bool bias_gradient,
                                                    bool target_gradient) {
  const auto options = cross_entropy_options(ignore_index, reduction, label_smoothing, softcap, z_loss);
  const Wanted wanted{input_gradient, weight_gradient, bias_gradient, target_gradient};
  const ScalarType type = input.scalar_type();
  std::optional<std::tuple<Tensor, Tensor, Tensor, Tensor>> result;
  dispatch_compute_type(input, [&](auto compute) {
    using T = decltype(compute);
    Problem<T> problem = read_arguments<T>(input, linear_weight, target, linear_bias, weight, options);
    check(!target_gradient || problem.loss.target == nullptr,
          "target must be class probabilities to have a gradient, got class indices");
    set_lse(lse, &problem.loss);
    problem.loss.lse_is_known = true;
    OptionalTensor upstream;
    set_upstream(grad_output, options.reduction, &upstream, &problem.loss);
    const Gradients gradients = allocate_gradients(problem, wanted);
    if (target_gradient) {
      problem.loss.probabilities_gradient = problem.loss.probabilities;
      problem.loss.probabilities_gradient.data = gradients.target.mutable_data_ptr();
    }
    run("linear_cross_entropy_backward/in_weight_gradient", "linear_cross_entropy_backward/chunks", problem, wanted,
        gradients);
    result.emplace(finished(gradients.input, input_gradient, input.sizes(), type),
                   finished(gradients.weight, weight_gradient, linear_weight.sizes(), type),
                   finished(gradients.bias, bias_gradient, {&problem.classes, 1}, type),
                   finished(gradients.target, target_gradient, target.sizes(), type));
  });
  return *result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, library) {
  library.impl("linear_cross_entropy_forward", TORCH_BOX(&linear_cross_entropy_forward));
  library.impl("linear_cross_entropy_backward", TORCH_BOX(&backward));
}

}  // namespace charlm
