// Tensors as Python has them, read by DLPack's exchange of C structs: for calls that go past the dispatcher, which
// takes longer on a tiny tensor than any kernel.
#pragma once

#include <Python.h>

#include <cstdint>
#include <memory>

#include "kernels/storage.h"
#include "kernels/token_index.h"

namespace charlm {

struct PyRelease {
  void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using PyReference = std::unique_ptr<PyObject, PyRelease>;

// A dense tensor of torch.Tensor or Parameter, of any strides, with its memory on the CPU, that is not empty.
struct PlainTensor {
  static constexpr int kMostDims = 3;
  PyObject* object = nullptr;  // borrowed
  void* data = nullptr;
  bool is_floating = false;
  Storage storage = Storage::kFloat32;        // where it is floating
  IntegerType integer = IntegerType::kInt64;  // where it is not
  int dims = 0;
  int64_t sizes[kMostDims] = {}, strides[kMostDims] = {};  // 1 and 0 of dimensions that it lacks
  int64_t count = 0;                                       // of elements
  bool is_contiguous = false;

  bool is(Storage wanted) const { return is_floating && storage == wanted; }
  bool has_shape(int wanted_dims, const int64_t* wanted) const;
  // Contiguous, of that shape.
  bool is_vector(int64_t size) const { return is_contiguous && dims == 1 && sizes[0] == size; }
  bool is_matrix(int64_t rows, int64_t columns) const {
    return is_contiguous && dims == 2 && sizes[0] == rows && sizes[1] == columns;
  }
};

// False where the object is none, or torch has no such exchange; no Python error is set then.
bool read_plain(PyObject* object, PlainTensor* tensor);

// New tensors on the CPU: of the shape, type and, where it has no gaps, the strides of another; or contiguous. Null
// with an error set where that fails.
PyReference empty_like(PyObject* tensor);
PyReference empty(Storage storage, int dims, const int64_t* sizes);  // of at most two dimensions
// The memory of one of them.
void* memory_of(const PyReference& tensor);

}  // namespace charlm
