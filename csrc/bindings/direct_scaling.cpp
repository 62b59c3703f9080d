#include <algorithm>
#include <cmath>

#include "bindings/branches.h"
#include "bindings/direct_calls.h"
#include "bindings/direct_loss.h"

namespace charlm {
namespace {

// A gradient whose dimensions but one are rows: see rows_of.
struct GradientRows {
  ClassMatrix matrix;
  int64_t rows, classes;

  explicit GradientRows(const PlainTensor& gradient)
      : matrix(rows_of(gradient, gradient.data)), classes(gradient.sizes[std::min(1, gradient.dims - 1)]) {
    rows = gradient.count / classes;
  }
};

template <typename T>
void multiply(const PlainTensor& gradient, double scale) {
  const T factor = static_cast<T>(scale);
  if (gradient.is_contiguous) {
    return cpu::scale_rows<T>({.data = gradient.data, .storage = gradient.storage}, 1, gradient.count, &factor);
  }
  const GradientRows of(gradient);
  const std::vector<T> factors(of.rows, factor);
  cpu::scale_rows(of.matrix, of.rows, of.classes, factors.data());
}

// A factor for each row, 0 for those that are ignored. False where they do not fit together.
template <typename T>
bool multiply_rows(const PlainTensor& gradient, const PlainTensor& scale, PyObject* target, int64_t ignore_index) {
  const GradientRows of(gradient);
  const int64_t row_shape[] = {gradient.sizes[0], gradient.sizes[2]};
  if (!scale.has_shape(gradient.dims - 1, row_shape)) return false;
  const Values<T> values(scale);
  std::vector<T> factors(values.data(), values.data() + of.rows);
  PlainTensor tensor;
  if (!read_plain(target, &tensor)) return false;
  if (!tensor.is_floating) {
    if (tensor.count != of.rows) return false;
    const Values<int64_t> indices(tensor);
    for (int64_t n = 0; n < of.rows; ++n) {
      if (indices.data()[n] == ignore_index) factors[n] = 0;
    }
  }
  cpu::scale_rows(of.matrix, of.rows, of.classes, factors.data());
  return true;
}

// (gradients, scale, target, ignore_index, most) -> whether it is done.
bool scale_gradients(PyObject* const* arguments) {
  PlainTensor scale;
  if (!PyList_Check(arguments[0]) || !read_plain(arguments[1], &scale) || !scale.is_floating) return false;
  const double factor = scale.dims == 0 ? *Values<double>(scale).data() : 0;
  if (factor == 1) return true;  // nearly always
  const int64_t ignore_index = PyLong_AsLongLong(arguments[3]), most = PyLong_AsLongLong(arguments[4]);
  if (PyErr_Occurred() != nullptr) return false;
  std::vector<PlainTensor> gradients(PyList_Size(arguments[0]));
  int64_t count = 0;
  for (size_t i = 0; i < gradients.size(); ++i) {
    PlainTensor& gradient = gradients[i];
    if (!read_plain(PyList_GetItem(arguments[0], i), &gradient) || !gradient.is_floating || gradient.dims == 0 ||
        (gradients.size() > 1 && !gradient.is_contiguous)) {
      return false;
    }
    count += gradient.count;
  }
  if (count > most || (scale.dims == 0 && !std::isfinite(factor))) return false;  // what does not count stays 0
  const auto is_double = [](const PlainTensor& gradient) { return gradient.storage == Storage::kFloat64; };
  if (scale.dims > 0) {
    if (gradients.size() != 1) return false;
    return is_double(gradients[0]) ? multiply_rows<double>(gradients[0], scale, arguments[2], ignore_index)
                                   : multiply_rows<float>(gradients[0], scale, arguments[2], ignore_index);
  }
  for (const PlainTensor& gradient : gradients) {
    is_double(gradient) ? multiply<double>(gradient, factor) : multiply<float>(gradient, factor);
  }
  return true;
}

}  // namespace

PyObject* scale_gradients_directly(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  bool done = false;
  try {
    done = count == 5 && scale_gradients(arguments);
  } catch (const std::exception&) {  // no memory, before anything was multiplied: the op says so
  }
  PyErr_Clear();
  if (done) took_branch("scale_gradients/direct");
  return PyBool_FromLong(done);
}

}  // namespace charlm
