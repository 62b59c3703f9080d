// scale * gradient, in the memory of gradients that forward has computed. Backward of a loss is nothing but this, and
// nearly always the scale is 1: asked here, and not in Python, as what traces a program must not see a number being
// read.
#include <cmath>
#include <cstring>

#include "bindings/checks.h"

namespace charlm {
namespace {

void multiply(const Tensor& gradient, const Tensor& scale) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(gradient), torch::stable::detail::from(scale)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul_", "Tensor", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // what it returns is owned here
}

// The rows of `gradient` along all dimensions but one, in the order of the target's elements.
class Rows {
 public:
  Rows(const Tensor& gradient, int64_t class_dim)
      : data_(static_cast<char*>(gradient.mutable_data_ptr())),
        size_(gradient.element_size()),
        classes_(gradient.size(class_dim)),
        class_stride_(gradient.stride(class_dim)) {
    for (int64_t d = 0; d < gradient.dim(); ++d) {
      if (d == class_dim) continue;
      sizes_.push_back(gradient.size(d));
      strides_.push_back(gradient.stride(d));
    }
  }

  void clear(int64_t row) const {
    int64_t at = 0;
    for (size_t d = sizes_.size(); d-- > 0;) {
      at += row % sizes_[d] * strides_[d];
      row /= sizes_[d];
    }
    for (int64_t c = 0; c < classes_; ++c) std::memset(data_ + (at + c * class_stride_) * size_, 0, size_);
  }

 private:
  char* data_;
  int64_t size_, classes_, class_stride_;
  std::vector<int64_t> sizes_, strides_;
};

double value_of(const Tensor& scale) {
  if (scale.scalar_type() == ScalarType::Float) return *scale.const_data_ptr<float>();
  return *contiguous_as(scale, ScalarType::Double).const_data_ptr<double>();
}

void scale_gradients(const std::vector<Tensor> gradients, const Tensor scale, const OptionalTensor target,
                     int64_t ignore_index, int64_t class_dim) {
  check_on_cpu("scale", scale);
  check(scale.numel() == 1, "scale must have one element, got shape ", ShapeString(scale));
  check_memory("scale", scale);
  const double value = value_of(scale);
  if (value == 1.0) return;  // nearly always: what is not read is not checked
  for (const Tensor& gradient : gradients) {
    check_floating("gradients", gradient);
    check_on_cpu("gradients", gradient);
  }
  check(class_dim == -1 || (!gradients.empty() && class_dim >= 0 && class_dim < gradients[0].dim()),
        "class_dim must be a dimension of the first gradient or -1, got ", class_dim);
  int64_t rows = 0, counting = 0;
  OptionalTensor classes;
  if (!std::isfinite(value) && target.has_value()) {
    check_memory("target", *target);
    classes = contiguous_as(*target, ScalarType::Long);
    rows = classes->numel();
    const int64_t* y = classes->const_data_ptr<int64_t>();
    for (int64_t n = 0; n < rows; ++n) counting += y[n] != ignore_index;
    if (counting == 0) return;  // all of them are 0
  }
  for (const Tensor& gradient : gradients) multiply(gradient, scale);
  if (counting == rows || class_dim < 0) return;
  check(rows * gradients[0].size(class_dim) == gradients[0].numel(), "target must have one element for each row of ",
        "the first gradient ", ShapeString(gradients[0]), ", got shape ", ShapeString(*target));
  const Rows gradient_rows(gradients[0], class_dim);
  const int64_t* y = classes->const_data_ptr<int64_t>();
  for (int64_t n = 0; n < rows; ++n) {
    if (y[n] == ignore_index) gradient_rows.clear(n);
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(charlm, CPU, ops) { ops.impl("scale_gradients_", TORCH_BOX(&scale_gradients)); }

}  // namespace charlm
