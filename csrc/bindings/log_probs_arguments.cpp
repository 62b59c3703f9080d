#include "bindings/log_probs_arguments.h"

#include <cmath>

namespace charlm {
namespace {

// (..., C) as an (N, C) matrix, where two strides lead through the dimensions before the last.
std::optional<ClassMatrix> rows_of(const Tensor& tensor) {
  ClassMatrix matrix;
  matrix.data = const_cast<void*>(tensor.const_data_ptr());
  matrix.storage = storage_of(tensor);
  const int64_t last = tensor.dim() - 1;
  matrix.class_stride = tensor.stride(last);
  if (tensor.numel() == 0) return matrix;
  // From the innermost outwards: dimensions join the inner group, or the outer one, while one stride serves both.
  int groups = 0;
  int64_t size[2] = {1, 1}, stride[2] = {0, 0};
  for (int64_t d = last - 1; d >= 0; --d) {
    if (tensor.size(d) == 1) continue;
    if (groups > 0 && tensor.stride(d) == stride[groups - 1] * size[groups - 1]) {
      size[groups - 1] *= tensor.size(d);
      continue;
    }
    if (groups == 2) return std::nullopt;
    size[groups] = tensor.size(d);
    stride[groups] = tensor.stride(d);
    ++groups;
  }
  if (groups < 2) {
    matrix.outer_stride = stride[0];
  } else {
    matrix.inner = size[0];
    matrix.inner_stride = stride[0];
    matrix.outer_stride = stride[1];
  }
  return matrix;
}

}  // namespace

LogProbsOptions log_probs_options(int64_t ignore_index, double temperature, double softcap) {
  check(temperature > 0 && std::isfinite(temperature), "temperature must be positive and finite, got ", temperature);
  check(softcap >= 0 && std::isfinite(softcap), "softcap must be positive and finite, or None, got ", softcap);
  return {ignore_index, temperature, softcap};
}

template <typename T>
void set_ids(const Tensor& ids, const Tensor& input, int64_t classes, const LogProbsOptions& options, Tensor* holder,
             LogProbs<T>* problem) {
  const Shape leading = leading_sizes(input);
  const bool has_several = ids.dim() == input.dim();
  check(has_several ? leading_sizes(ids).equals(leading) : ids.sizes().equals(leading),
        "ids must have the shape of input ", ShapeString(input),
        " without its last dimension, or with K ids a row in its place, got ", ShapeString(ids));
  check_same_device("ids", ids, "input", input);
  check_integral("ids", ids);
  problem->rows = product("input", leading);
  problem->classes = classes;
  problem->ids_per_row = has_several ? ids.size(ids.dim() - 1) : 1;
  check_sizes({{"N", problem->rows}, {"C", classes}});
  check_sizes({{"N", problem->rows}, {"K", problem->ids_per_row}});
  *holder = contiguous_as(ids, ScalarType::Long);
  problem->ids = holder->template const_data_ptr<int64_t>();
  problem->ignore_index = options.ignore_index;
  problem->temperature = option_as<T>("temperature", options.temperature);
  option_as<T>("1 / temperature", 1 / options.temperature);  // kernels multiply by it
  problem->softcap = option_as<T>("softcap", options.softcap);
}

template <typename T>
void check_ids(const LogProbs<T>& problem, Shape shape) {
  const int64_t count = problem.rows * problem.ids_per_row;
  const int64_t bad = cpu::first_bad_class(problem.ids, count, problem.classes, problem.ignore_index);
  if (bad < 0) [[likely]] {
    return;
  }
  out_of_range("ids", bad, shape, std::to_string(problem.ids[bad]), problem.classes, "classes");
}

Logits read_logits(const Tensor& input) {
  check(input.dim() >= 1, "input must have shape (..., C), got ()");
  check_floating("input", input);
  if (const auto rows = rows_of(input)) return {input, *rows};
  const Tensor copy = as_contiguous(input);
  return {copy, *rows_of(copy)};
}

Logits empty_logits(const Tensor& like) {
  const Tensor tensor = allocate_like(like);
  if (const auto rows = rows_of(tensor)) return {tensor, *rows};
  const Tensor contiguous = allocate(like.sizes(), like.scalar_type(), like.device());
  return {contiguous, *rows_of(contiguous)};
}

template <typename T>
LogProbsResults allocate_results(const Tensor& ids, const Tensor& input, LogProbs<T>* problem) {
  const Shape leading = leading_sizes(input);
  const auto floats = [&](Shape shape) { return allocate(shape, kDtype<T>, input.device()); };
  const auto integers = [&] { return allocate(leading, ScalarType::Long, input.device()); };
  LogProbsResults results{floats(ids.sizes()), floats(leading), floats(leading),
                          integers(),          integers(),      floats({3, problem->rows})};
  const auto& [log_probs, entropy, logsumexp, argmax, rank, kept] = results;
  problem->log_probs = log_probs.template mutable_data_ptr<T>();
  problem->entropy = entropy.template mutable_data_ptr<T>();
  problem->logsumexp = logsumexp.template mutable_data_ptr<T>();
  problem->argmax = argmax.template mutable_data_ptr<int64_t>();
  problem->rank = rank.template mutable_data_ptr<int64_t>();
  set_kept(kept, problem);
  return results;
}

template <typename T>
void set_kept(const Tensor& kept, LogProbs<T>* problem) {
  check(kept.numel() == 3 * problem->rows && kept.is_contiguous() && kept.scalar_type() == kDtype<T>,
        "kept must be what the forward op returned, shape (3, ", problem->rows, "), got shape ", ShapeString(kept));
  check_memory("kept", kept);
  problem->shift = static_cast<T*>(kept.data_ptr());
  problem->log_sum = problem->shift + problem->rows;
  problem->kept_entropy = problem->log_sum + problem->rows;
}

template <typename T>
LogProbsUpstream set_upstream(const OptionalTensor& log_probs, const OptionalTensor& entropy,
                              const OptionalTensor& logsumexp, const Tensor& input, LogProbs<T>* problem) {
  const auto read = [&](const char* name, const OptionalTensor& gradient, int64_t count, const T** values) {
    if (!gradient.has_value()) return OptionalTensor();
    check_same_device(name, *gradient, "input", input);
    check_elements(name, *gradient, count);
    OptionalTensor converted = contiguous_as(gradient, kDtype<T>);
    *values = converted->template const_data_ptr<T>();
    return converted;
  };
  return {
      read("log_probs_gradient", log_probs, problem->rows * problem->ids_per_row, &problem->log_probs_gradient),
      read("entropy_gradient", entropy, problem->rows, &problem->entropy_gradient),
      read("logsumexp_gradient", logsumexp, problem->rows, &problem->logsumexp_gradient),
  };
}

#define CHARLM_INSTANTIATE(T)                                                                                  \
  template void set_ids(const Tensor&, const Tensor&, int64_t, const LogProbsOptions&, Tensor*, LogProbs<T>*); \
  template void check_ids(const LogProbs<T>&, Shape);                                                          \
  template LogProbsResults allocate_results(const Tensor&, const Tensor&, LogProbs<T>*);                       \
  template void set_kept(const Tensor&, LogProbs<T>*);                                                         \
  template LogProbsUpstream set_upstream(const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,  \
                                         const Tensor&, LogProbs<T>*);
CHARLM_INSTANTIATE(float)
CHARLM_INSTANTIATE(double)
#undef CHARLM_INSTANTIATE

}  // namespace charlm
