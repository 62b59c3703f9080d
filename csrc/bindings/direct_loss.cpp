#include "bindings/direct_loss.h"

#include <functional>
#include <numeric>
#include <tuple>

namespace charlm {

PyObject* not_for_it() {
  PyErr_Clear();
  Py_RETURN_NONE;
}
PyReference none() {
  Py_INCREF(Py_None);
  return PyReference(Py_None);
}

ClassMatrix rows_of(const PlainTensor& tensor, void* data) {
  const int class_dim = tensor.dims == 1 ? 0 : 1;
  ClassMatrix matrix{.data = data, .storage = tensor.storage};
  matrix.class_stride = tensor.sizes[class_dim] == 1 ? 1 : tensor.strides[class_dim];
  if (tensor.dims > 1) matrix.outer_stride = tensor.strides[0];
  if (tensor.dims > 2 && tensor.sizes[2] > 1) {
    matrix.inner = tensor.sizes[2];
    matrix.inner_stride = tensor.strides[2];
  }
  return matrix;
}

bool read_options(PyObject* tuple, CrossEntropyOptions* options) {
  const auto integer = [&](int i) { return PyLong_AsLongLong(PyTuple_GetItem(tuple, i)); };
  const auto number = [&](int i) { return PyFloat_AsDouble(PyTuple_GetItem(tuple, i)); };
  const auto found = std::make_tuple(integer(0), integer(1), number(2), number(3), number(4));
  if (PyErr_Occurred() != nullptr) return false;
  try {
    *options = std::apply(cross_entropy_options, found);
  } catch (const std::invalid_argument&) {
    return false;
  }
  return true;
}

template <typename T>
Values<T>::Values(const PlainTensor& tensor) : data_(static_cast<const T*>(tensor.data)) {
  if (tensor.is(kStorageOf<T>) && tensor.is_contiguous) return;
  copy_.resize(tensor.count);
  data_ = copy_.data();
  const int64_t *const sizes = tensor.sizes, *const strides = tensor.strides;
  const auto copy = [&](const auto* from) {
    T* to = copy_.data();
    for (int64_t i = 0; i < sizes[0]; ++i) {
      for (int64_t j = 0; j < sizes[1]; ++j) {
        for (int64_t k = 0; k < sizes[2]; ++k) {
          *to++ = static_cast<T>(to_compute(from[i * strides[0] + j * strides[1] + k * strides[2]]));
        }
      }
    }
  };
  if (tensor.storage == Storage::kFloat64) {
    copy(static_cast<const double*>(tensor.data));
  } else {
    with_storage<float>(tensor.data, tensor.storage, copy);
  }
}

ClassIndices::ClassIndices(const PlainTensor& tensor) : data_(static_cast<const int64_t*>(tensor.data)) {
  if (tensor.integer == IntegerType::kInt64 && tensor.is_contiguous) return;
  const TokenIds ids{tensor.data,     tensor.integer,    tensor.sizes[0],
                     tensor.sizes[1], tensor.strides[0], tensor.strides[1]};
  copy_.resize(tensor.count);
  data_ = copy_.data();
  for (int64_t n = 0; n < tensor.count; ++n) copy_[n] = id_at(ids, n / ids.context_length, n % ids.context_length);
}

template <typename T>
LossArguments<T>::LossArguments(int64_t classes, int dims, const int64_t* shape, const CrossEntropyOptions& options)
    : reduction(options.reduction), dims(dims), shape(shape) {
  problem.rows = std::accumulate(shape, shape + dims, int64_t{1}, std::multiplies<int64_t>());
  problem.classes = classes;
  problem.ignore_index = options.ignore_index;
  problem.label_smoothing = option_as<T>("label_smoothing", options.label_smoothing);
  problem.softcap = option_as<T>("softcap", options.softcap);
  problem.z_loss = option_as<T>("z_loss", options.z_loss);
}

template <typename T>
bool LossArguments<T>::take_classes(const PlainTensor& target) {
  classes_ = ClassIndices(target);
  problem.target = classes_.data();
  return cpu::first_bad_target(problem) < 0;
}

template <typename T>
bool LossArguments<T>::take_weight(PyObject* weight) {
  if (weight == Py_None) return true;
  PlainTensor tensor;
  if (!read_plain(weight, &tensor) || !tensor.is_floating || !tensor.has_shape(1, &problem.classes)) return false;
  weight_ = Values<T>(tensor);
  problem.weight = weight_.data();
  return true;
}

template <typename T>
PyReference LossArguments<T>::make_lse() {
  const int64_t sizes[] = {2, problem.rows};
  PyReference lse = empty(kStorageOf<T>, 2, sizes);
  if (lse == nullptr) return nullptr;
  problem.shift = static_cast<T*>(memory_of(lse));
  problem.log_sum = problem.shift + problem.rows;
  return lse;
}

template <typename T>
bool LossArguments<T>::take_lse(PyObject* lse) {
  PlainTensor tensor;
  if (!read_plain(lse, &tensor) || !tensor.is(kStorageOf<T>) || !tensor.is_matrix(2, problem.rows)) return false;
  problem.lse_is_known = true;
  problem.shift = static_cast<T*>(tensor.data);
  problem.log_sum = problem.shift + problem.rows;
  return true;
}

template <typename T>
bool LossArguments<T>::take_upstream(PyObject* grad_output) {
  PlainTensor tensor;
  const bool per_row = reduction == Reduction::kNone;
  if (!read_plain(grad_output, &tensor) || !tensor.is_floating || !tensor.has_shape(per_row ? dims : 0, shape)) {
    return false;
  }
  upstream_ = Values<T>(tensor);
  if (per_row) {
    problem.row_scale = upstream_.data();
  } else {
    problem.scale = reduction == Reduction::kMean ? 1 / cpu::mean_denominator(problem) : 1;
    problem.scale *= *upstream_.data();
  }
  return true;
}

template <typename T>
LossResult<T>::LossResult(Storage storage, LossArguments<T>* loss)
    : storage_(storage),
      reduction_(loss->reduction),
      tensor_(empty(storage, reduction_ == Reduction::kNone ? loss->dims : 0, loss->shape)),
      memory_(tensor_ == nullptr ? nullptr : memory_of(tensor_)),
      rows_(loss->problem.rows),
      denominator_(reduction_ == Reduction::kMean ? cpu::mean_denominator(loss->problem) : 1) {
  const bool in_tensor = reduction_ == Reduction::kNone && storage == kStorageOf<T>;
  loss->problem.loss = in_tensor ? static_cast<T*>(memory_) : rows_.data();
  loss->problem.scale = 1 / denominator_;
}

template <typename T>
PyObject* LossResult<T>::finished(const CrossEntropy<T>& problem) const {
  with_storage<T>(memory_, storage_, [&](auto* out) {
    if (reduction_ != Reduction::kNone) {
      from_compute(static_cast<T>(cpu::total_loss(problem) / denominator_), out);
    } else if (problem.loss == rows_.data()) {
      for (int64_t n = 0; n < problem.rows; ++n) from_compute(problem.loss[n], out + n);
    }
  });
  return tensor_.get();
}

template class Values<float>;
template class Values<double>;
template class LossArguments<float>;
template class LossArguments<double>;
template class LossResult<float>;
template class LossResult<double>;

}  // namespace charlm
