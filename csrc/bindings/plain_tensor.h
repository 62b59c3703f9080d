// Tensors as Python has them, read by DLPack's exchange of C structs: for calls that go past the dispatcher, which
// takes longer on a tiny tensor than any kernel.
#pragma once

#include <Python.h>

#include <cstdint>
#include <memory>

#include "kernels/token_index.h"

namespace charlm {

struct PyRelease {
  void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using PyReference = std::unique_ptr<PyObject, PyRelease>;

// A dense, contiguous tensor of torch.Tensor or Parameter, with its memory on the CPU, that is not empty.
struct PlainTensor {
  enum class Type { kFloat32, kFloat64, kBFloat16, kFloat16, kInteger };
  static constexpr int kMostDims = 3;
  PyObject* object = nullptr;  // borrowed
  void* data = nullptr;
  Type type = Type::kFloat32;
  IntegerType integer = IntegerType::kInt64;  // where the type is kInteger
  int dims = 0;
  int64_t sizes[kMostDims] = {};

  bool is_int64() const { return type == Type::kInteger && integer == IntegerType::kInt64; }
  bool is_vector(int64_t size) const { return dims == 1 && sizes[0] == size; }
  bool is_matrix(int64_t rows, int64_t columns) const { return dims == 2 && sizes[0] == rows && sizes[1] == columns; }
};

// False where the object is none, or torch has no such exchange; no Python error is set then.
bool read_plain(PyObject* object, PlainTensor* tensor);

// New tensors of the shape and type of another, scalars, and vectors of float32; null with an error set
// where that fails.
PyReference empty_like(PyObject* tensor);
PyReference empty_scalar(PlainTensor::Type type);  // float32 or bfloat16
PyReference empty_vector(int64_t size);
// The memory of one of them.
void* memory_of(const PyReference& tensor);

}  // namespace charlm
