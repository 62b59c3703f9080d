#include "bindings/plain_tensor.h"

#include <algorithm>

#include "bindings/dlpack.h"

namespace charlm {
namespace {

// What is looked up once.
struct Torch {
  PyObject *tensor, *parameter, *empty_like;
  PyObject* scalars[4];  // one of each storage
  PyObject *is_neg, *untyped_storage, *nbytes, *data_ptr, *new_empty;
  const dlpack::Exchange* exchange;

  // Null where torch lacks any of it.
  static const Torch* get() {
    static const Torch* const torch = make();
    return torch;
  }

 private:
  // Whatever torch's default dtype and device are.
  static PyObject* make_scalar(PyObject* torch, const char* type) {
    const PyReference function(PyObject_GetAttrString(torch, "scalar_tensor")), arguments(Py_BuildValue("(f)", 0.0)),
        dtype(PyObject_GetAttrString(torch, type));
    if (function == nullptr || arguments == nullptr || dtype == nullptr) return nullptr;
    const PyReference keywords(Py_BuildValue("{s:O,s:s}", "dtype", dtype.get(), "device", "cpu"));
    return keywords == nullptr ? nullptr : PyObject_Call(function.get(), arguments.get(), keywords.get());
  }
  static const Torch* make() {
    const PyReference module(PyImport_ImportModule("torch")), nn(PyImport_ImportModule("torch.nn"));
    if (module == nullptr || nn == nullptr) return nullptr;
    auto torch = std::make_unique<Torch>();
    torch->tensor = PyObject_GetAttrString(module.get(), "Tensor");
    torch->parameter = PyObject_GetAttrString(nn.get(), "Parameter");
    torch->empty_like = PyObject_GetAttrString(module.get(), "empty_like");
    bool is_whole = torch->tensor != nullptr && torch->parameter != nullptr && torch->empty_like != nullptr;
    for (const auto& [storage, type] : {std::pair(Storage::kFloat32, "float32"),
                                        {Storage::kFloat64, "float64"},
                                        {Storage::kBFloat16, "bfloat16"},
                                        {Storage::kFloat16, "float16"}}) {
      PyObject*& scalar = torch->scalars[static_cast<int>(storage)];
      if (is_whole) scalar = make_scalar(module.get(), type);
      is_whole = is_whole && scalar != nullptr;
    }
    const PyReference capsule(is_whole ? PyObject_GetAttrString(torch->tensor, dlpack::kExchangeAttribute) : nullptr);
    if (capsule == nullptr) return nullptr;
    torch->exchange = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.get(), dlpack::kExchangeName));
    if (torch->exchange == nullptr || torch->exchange->version.major != dlpack::kMajorVersion ||
        torch->exchange->view_from_python == nullptr) {
      return nullptr;
    }
    torch->is_neg = PyUnicode_InternFromString("is_neg");
    torch->untyped_storage = PyUnicode_InternFromString("untyped_storage");
    torch->nbytes = PyUnicode_InternFromString("nbytes");
    torch->data_ptr = PyUnicode_InternFromString("data_ptr");
    torch->new_empty = PyUnicode_InternFromString("new_empty");
    return torch.release();
  }
};

PyReference call(PyObject* object, PyObject* name) {
  return PyReference(PyObject_CallMethodObjArgs(object, name, nullptr));
}
int64_t call_for_integer(PyObject* object, PyObject* name) {
  const PyReference number = call(object, name);
  return number == nullptr ? -1 : PyLong_AsLongLong(number.get());
}

bool read_type(const dlpack::DataType& dtype, PlainTensor* tensor) {
  const bool is_signed = dtype.code == dlpack::kInt;
  if (dtype.lanes != 1) return false;
  tensor->is_floating = dtype.code == dlpack::kFloat || dtype.code == dlpack::kBfloat;
  if (dtype.code == dlpack::kFloat && (dtype.bits == 16 || dtype.bits == 32 || dtype.bits == 64)) {
    tensor->storage = dtype.bits == 16 ? Storage::kFloat16 : dtype.bits == 32 ? Storage::kFloat32 : Storage::kFloat64;
  } else if (dtype.code == dlpack::kBfloat && dtype.bits == 16) {
    tensor->storage = Storage::kBFloat16;
  } else if (is_signed || dtype.code == dlpack::kUnsigned) {
    using Integer = IntegerType;
    tensor->integer = dtype.bits == 8    ? is_signed ? Integer::kInt8 : Integer::kUInt8
                      : dtype.bits == 16 ? is_signed ? Integer::kInt16 : Integer::kUInt16
                      : dtype.bits == 32 ? is_signed ? Integer::kInt32 : Integer::kUInt32
                      : is_signed        ? Integer::kInt64
                                         : Integer::kUInt64;
  } else {
    return false;
  }
  return true;
}

bool read(const Torch& torch, PyObject* object, PlainTensor* tensor) {
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != torch.tensor && type != torch.parameter) return false;
  dlpack::TensorView shared;
  if (torch.exchange->view_from_python(object, &shared) != 0) return false;
  if (shared.device.type != dlpack::kCpu || shared.data == nullptr || !read_type(shared.type, tensor) ||
      shared.dims > PlainTensor::kMostDims) {
    return false;
  }
  tensor->object = object;
  tensor->data = static_cast<char*>(shared.data) + shared.byte_offset;
  tensor->dims = shared.dims;
  tensor->count = 1;
  tensor->is_contiguous = true;
  int64_t span = 1;  // elements from the first to the last
  for (int d = PlainTensor::kMostDims - 1; d >= 0; --d) {
    const int64_t size = d < shared.dims ? shared.shape[d] : 1, stride = d < shared.dims ? shared.strides[d] : 0;
    if (size <= 0) return false;
    tensor->sizes[d] = size;
    tensor->strides[d] = stride;
    if (size > 1 && stride != tensor->count) tensor->is_contiguous = false;
    tensor->count *= size;
    span += (size - 1) * stride;  // no larger than the storage was when the tensor was made
  }
  // Values that are still to be negated, and a storage that was cut short behind the back of its tensors.
  if (call(object, torch.is_neg).get() != Py_False) return false;
  const PyReference storage = call(object, torch.untyped_storage);
  if (storage == nullptr) return false;
  const auto first = reinterpret_cast<int64_t>(tensor->data), bytes = span * (shared.type.bits / 8);
  return first - call_for_integer(storage.get(), torch.data_ptr) + bytes <=
         call_for_integer(storage.get(), torch.nbytes);
}

}  // namespace

bool PlainTensor::has_shape(int wanted_dims, const int64_t* wanted) const {
  return dims == wanted_dims && std::equal(sizes, sizes + dims, wanted);
}

bool read_plain(PyObject* object, PlainTensor* tensor) {
  const Torch* torch = Torch::get();
  const bool is_plain = torch != nullptr && read(*torch, object, tensor);
  if (!is_plain) PyErr_Clear();
  return is_plain;
}

PyReference empty_like(PyObject* tensor) {
  return PyReference(PyObject_CallFunctionObjArgs(Torch::get()->empty_like, tensor, nullptr));
}
PyReference empty(Storage storage, int dims, const int64_t* sizes) {
  const Torch& torch = *Torch::get();
  PyObject* const scalar = torch.scalars[static_cast<int>(storage)];
  if (dims == 0) return empty_like(scalar);
  // As numbers: torch takes half as long again to read a tuple.
  const PyReference first(PyLong_FromLongLong(sizes[0])), second(dims == 1 ? nullptr : PyLong_FromLongLong(sizes[1]));
  if (first == nullptr || (dims > 1 && second == nullptr)) return nullptr;
  return PyReference(
      PyObject_CallMethodObjArgs(scalar, torch.new_empty, first.get(), second.get(), nullptr));  // null ends the list
}
void* memory_of(const PyReference& tensor) {
  dlpack::TensorView shared;
  if (Torch::get()->exchange->view_from_python(tensor.get(), &shared) != 0) return nullptr;
  return shared.data;
}

}  // namespace charlm
