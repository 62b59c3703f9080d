#include "bindings/cross_entropy_options.h"

#include <cmath>

namespace charlm {

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
void set_options(const CrossEntropyOptions& options, CrossEntropy<T>* problem) {
  problem->ignore_index = options.ignore_index;
  problem->label_smoothing = option_as<T>("label_smoothing", options.label_smoothing);
  problem->softcap = option_as<T>("softcap", options.softcap);
  problem->z_loss = option_as<T>("z_loss", options.z_loss);
}

template <typename T>
void set_weight(const OptionalTensor& weight, const Tensor& input, OptionalTensor* holder, CrossEntropy<T>* problem) {
  if (!weight.has_value()) return;
  check_same_device("weight", *weight, "input", input);
  check_floating("weight", *weight);
  check_shape("weight", *weight, {{"C", problem->classes}});
  *holder = contiguous_as(*weight, kDtype<T>);
  problem->weight = (*holder)->template const_data_ptr<T>();
}

template <typename T>
void set_token_weights(const OptionalTensor& token_weights, Shape row_shape, const Tensor& input,
                       OptionalTensor* holder, CrossEntropy<T>* problem) {
  if (!token_weights.has_value()) return;
  check_same_device("token_weights", *token_weights, "input", input);
  check_floating("token_weights", *token_weights);
  check(token_weights->sizes().equals(row_shape), "token_weights must have the shape of the row losses, ",
        ShapeString(row_shape), ", got ", ShapeString(*token_weights));
  *holder = contiguous_as(*token_weights, kDtype<T>);
  problem->token_weights = (*holder)->template const_data_ptr<T>();
}

template <typename T>
void check_targets(const CrossEntropy<T>& problem, Shape shape) {
  if (problem.target == nullptr) return;
  const int64_t bad = cpu::first_bad_class(problem.target, problem.rows, problem.classes, problem.ignore_index);
  if (bad < 0) [[likely]] {
    return;
  }
  out_of_range("target", bad, shape, std::to_string(problem.target[bad]), problem.classes, "classes");
}

template <typename T>
void set_lse(const Tensor& lse, Reduction reduction, CrossEntropy<T>* problem) {
  const int64_t values = lse_values(problem->rows, reduction);
  check(lse.numel() == values && lse.is_contiguous() && lse.element_size() == sizeof(T),
        "lse must be what the forward op returned, shape (", values, "), got shape ", ShapeString(lse));
  check_memory("lse", lse);
  set_lse(static_cast<T*>(lse.data_ptr()), reduction, problem);
}

template <typename T>
Losses<T>::Losses(Reduction reduction, Shape shape, Kept kept, CrossEntropy<T>* problem)
    : reduction_(reduction),
      result_(allocate(reduction == Reduction::kNone ? shape : Shape(), kDtype<T>)),
      kept_(allocate({kept == Kept::kLse ? lse_values(problem->rows, reduction) : problem->rows}, kDtype<T>)),
      rows_(reduction == Reduction::kNone ? 0 : problem->rows) {
  if (kept == Kept::kLse) {
    set_lse(kept_, reduction, problem);
  } else {
    problem->target_log_probability = kept_.template mutable_data_ptr<T>();
  }
  denominator_ = denominator_of(reduction, *problem);
  problem->loss = reduction == Reduction::kNone ? result_.template mutable_data_ptr<T>() : rows_.data();
  problem->scale = 1 / denominator_;
}

template <typename T>
Tensor Losses<T>::reduced(const CrossEntropy<T>& problem) const {
  // A mean over nothing is 0 / 0, NaN as in torch.
  if (reduction_ != Reduction::kNone) {
    *result_.template mutable_data_ptr<T>() = static_cast<T>(cpu::total_loss(problem) / denominator_);
  }
  return result_;
}

template <typename T>
void set_upstream(const Tensor& grad_output, Reduction reduction, OptionalTensor* holder, CrossEntropy<T>* problem) {
  const bool per_row = reduction == Reduction::kNone;
  check_on_cpu("grad_output", grad_output);
  check_elements("grad_output", grad_output, per_row ? problem->rows : 1);
  *holder = contiguous_as(grad_output, kDtype<T>);
  const T* values = (*holder)->template const_data_ptr<T>();
  if (per_row) {
    problem->row_scale = values;
  } else {
    problem->scale = 1 / denominator_of(reduction, *problem) * values[0];
  }
}

template void set_options(const CrossEntropyOptions&, CrossEntropy<float>*);
template void set_options(const CrossEntropyOptions&, CrossEntropy<double>*);
template void set_weight(const OptionalTensor&, const Tensor&, OptionalTensor*, CrossEntropy<float>*);
template void set_weight(const OptionalTensor&, const Tensor&, OptionalTensor*, CrossEntropy<double>*);
template void set_token_weights(const OptionalTensor&, Shape, const Tensor&, OptionalTensor*, CrossEntropy<float>*);
template void set_token_weights(const OptionalTensor&, Shape, const Tensor&, OptionalTensor*, CrossEntropy<double>*);
template void check_targets(const CrossEntropy<float>&, Shape);
template void check_targets(const CrossEntropy<double>&, Shape);
template void set_lse(const Tensor&, Reduction, CrossEntropy<float>*);
template void set_lse(const Tensor&, Reduction, CrossEntropy<double>*);
template class Losses<float>;
template class Losses<double>;
template void set_upstream(const Tensor&, Reduction, OptionalTensor*, CrossEntropy<float>*);
template void set_upstream(const Tensor&, Reduction, OptionalTensor*, CrossEntropy<double>*);

}  // namespace charlm
