#include "bindings/direct_loss.h"

#include <functional>
#include <numeric>
#include <tuple>
#include <type_traits>

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

namespace {

template <typename T>
bool is_stored_as(const PlainTensor& tensor) {
  if constexpr (std::is_same_v<T, int64_t>) {
    return !tensor.is_floating && tensor.integer == IntegerType::kInt64;
  } else {
    return tensor.is(kStorageOf<T>);
  }
}

void copy_values(const PlainTensor& tensor, int64_t* to) {
  const TokenIds ids{tensor.data,     tensor.integer,    tensor.sizes[0],
                     tensor.sizes[1], tensor.strides[0], tensor.strides[1]};
  for (int64_t n = 0; n < tensor.count; ++n) to[n] = id_at(ids, n / ids.context_length, n % ids.context_length);
}

template <typename T>
void copy_values(const PlainTensor& tensor, T* to) {
  const int64_t *const sizes = tensor.sizes, *const strides = tensor.strides;
  const auto copy = [&](const auto* from) {
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

}  // namespace

template <typename T>
Values<T>::Values(const PlainTensor& tensor) : data_(static_cast<const T*>(tensor.data)) {
  if (is_stored_as<T>(tensor) && tensor.is_contiguous) return;
  copy_.resize(tensor.count);
  data_ = copy_.data();
  copy_values(tensor, copy_.data());
}

template <typename T>
LossArguments<T>::LossArguments(int64_t classes, int dims, const int64_t* shape, const CrossEntropyOptions& options)
    : reduction(options.reduction), dims(dims), shape(shape) {
  problem.rows = std::accumulate(shape, shape + dims, int64_t{1}, std::multiplies<int64_t>());
  problem.classes = classes;
  set_options(options, &problem);
}

template <typename T>
bool LossArguments<T>::take_classes(const PlainTensor& target) {
  classes_ = Values<int64_t>(target);
  problem.target = classes_.data();
  return cpu::first_bad_class(problem.target, problem.rows, problem.classes, problem.ignore_index) < 0;
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
  const int64_t size = lse_values(problem.rows, reduction);
  PyReference lse = empty(kStorageOf<T>, 1, &size);
  if (lse == nullptr) return nullptr;
  set_lse(static_cast<T*>(memory_of(lse)), reduction, &problem);
  return lse;
}

template <typename T>
bool LossArguments<T>::take_lse(PyObject* lse) {
  PlainTensor tensor;
  const int64_t size = lse_values(problem.rows, reduction);
  if (!read_plain(lse, &tensor) || !tensor.is(kStorageOf<T>) || !tensor.is_vector(size)) return false;
  problem.lse_is_known = true;
  set_lse(static_cast<T*>(tensor.data), reduction, &problem);
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
    problem.scale = 1 / denominator_of(reduction, problem) * *upstream_.data();
  }
  return true;
}

template <typename T>
LossResult<T>::LossResult(Storage storage, LossArguments<T>* loss)
    : storage_(storage),
      reduction_(loss->reduction),
      has_rows_(reduction_ == Reduction::kNone && storage == kStorageOf<T>),
      tensor_(empty(storage, reduction_ == Reduction::kNone ? loss->dims : 0, loss->shape)),
      memory_(tensor_ == nullptr ? nullptr : memory_of(tensor_)),
      rows_(has_rows_ ? 0 : loss->problem.rows),
      denominator_(denominator_of(reduction_, loss->problem)) {
  loss->problem.loss = has_rows_ ? static_cast<T*>(memory_) : rows_.data();
  loss->problem.scale = 1 / denominator_;
}

template <typename T>
PyObject* LossResult<T>::finished(const CrossEntropy<T>& problem) const {
  with_storage<T>(memory_, storage_, [&](auto* out) {
    if (reduction_ != Reduction::kNone) {
      from_compute(static_cast<T>(cpu::total_loss(problem) / denominator_), out);
    } else if (!has_rows_) {
      for (int64_t n = 0; n < problem.rows; ++n) from_compute(problem.loss[n], out + n);
    }
  });
  return tensor_.get();
}

template class Values<float>;
template class Values<double>;
template class Values<int64_t>;
template class LossArguments<float>;
template class LossArguments<double>;
template class LossResult<float>;
template class LossResult<double>;

}  // namespace charlm
