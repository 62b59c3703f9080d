// What the direct calls of losses share: options, targets, class weights and the result.
#pragma once

#include <vector>

#include "bindings/cross_entropy_options.h"
#include "bindings/plain_tensor.h"

namespace charlm {

// None, for a call that is not meant for these arguments; it clears the error that Python may have set.
PyObject* not_for_it();
PyReference none();

// What `function` returns; `not_for_it` where that is null or throws, of memory for instance: the op comes to the same
// and says so.
template <typename Function>
PyObject* or_none(const Function& function) {
  try {
    PyObject* result = function();
    return result != nullptr ? result : not_for_it();
  } catch (const std::exception&) {
    return not_for_it();
  }
}

// Of the tuple charlm.ops._arguments.LossOptions. False where it is none, or an option is out of range.
bool read_options(PyObject* tuple, CrossEntropyOptions* options);

// A tensor (C,), (N, C) or (N, C, d1), or another of the same strides whose memory is `data`, as rows of classes.
ClassMatrix rows_of(const PlainTensor& tensor, void* data);

// The values of a tensor, in the order of its indices: its own memory, or a copy. T is float or double, for
// floating-point tensors, or int64_t, for integers.
template <typename T>
class Values {
 public:
  Values() = default;
  explicit Values(const PlainTensor& tensor);
  Values(Values&&) = default;
  Values& operator=(Values&&) = default;
  const T* data() const { return data_; }

 private:
  const T* data_ = nullptr;
  std::vector<T> copy_;
};

// The arguments that losses have in common, and the problem that points into them.
template <typename T>
class LossArguments {
 public:
  // The shape is that of class indices and row losses.
  LossArguments(int64_t classes, int dims, const int64_t* shape, const CrossEntropyOptions& options);
  // Each is false where the argument is not what it should be.
  bool take_classes(const PlainTensor& target);  // indices of that shape, all in range
  bool take_weight(PyObject* weight);            // (C,), or None
  bool take_lse(PyObject* lse);                  // what make_lse made
  bool take_upstream(PyObject* grad_output);     // of that shape under "none", else a scalar; after take_lse
  // A new tensor for what backward needs of each row, which the problem writes, and of the mean, which the result does,
  // made after it; null with an error set.
  PyReference make_lse();

  CrossEntropy<T> problem;
  const Reduction reduction;
  const int dims;
  const int64_t* const shape;

 private:
  Values<int64_t> classes_;
  Values<T> weight_, upstream_;
};

// The new tensor that a loss is returned in, as the type computed in or rounded to another.
template <typename T>
class LossResult {
 public:
  // Gradients are divided by the mean's denominator.
  LossResult(Storage storage, LossArguments<T>* loss);
  bool is_possible() const { return memory_ != nullptr; }
  // The tensor, borrowed, for a problem whose row losses are known.
  PyObject* finished(const CrossEntropy<T>& problem) const;

 private:
  Storage storage_;
  Reduction reduction_;
  bool has_rows_;  // the tensor has room for the row losses
  PyReference tensor_;
  void* memory_;
  Workspace<T> rows_;  // (N,) where it has not
  T denominator_;
};

}  // namespace charlm
