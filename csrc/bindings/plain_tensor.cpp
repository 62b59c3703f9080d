#include "bindings/plain_tensor.h"

#include "bindings/dlpack.h"

namespace charlm {
namespace {

// What is looked up once.
struct Torch {
  PyObject *tensor, *parameter, *empty_like, *scalar, *half_scalar;
  PyObject *is_neg, *untyped_storage, *nbytes, *data_ptr;
  const dlpack::Exchange* exchange;

  // Null where torch lacks any of it.
  static const Torch* get() {
    static const Torch* const torch = make();
    return torch;
  }

 private:
  // Whatever torch's default dtype and device are.
  static PyObject* make_scalar(PyObject* torch) {
    const PyReference function(PyObject_GetAttrString(torch, "scalar_tensor")), arguments(Py_BuildValue("(f)", 0.0)),
        dtype(PyObject_GetAttrString(torch, "float32"));
    if (function == nullptr || arguments == nullptr || dtype == nullptr) return nullptr;
    const PyReference keywords(Py_BuildValue("{s:O,s:s}", "dtype", dtype.get(), "device", "cpu"));
    return keywords == nullptr ? nullptr : PyObject_Call(function.get(), arguments.get(), keywords.get());
  }
  static const Torch* make() {
    const PyReference module(PyImport_ImportModule("torch")), nn(PyImport_ImportModule("torch.nn"));
    if (module == nullptr || nn == nullptr) return nullptr;
    PyObject* const tensor = PyObject_GetAttrString(module.get(), "Tensor");
    PyObject* const parameter = PyObject_GetAttrString(nn.get(), "Parameter");
    PyObject* const empty_like = PyObject_GetAttrString(module.get(), "empty_like");
    PyObject* const scalar = make_scalar(module.get());
    PyObject* const half_scalar = scalar == nullptr ? nullptr : PyObject_CallMethod(scalar, "bfloat16", nullptr);
    const PyReference capsule(tensor == nullptr ? nullptr : PyObject_GetAttrString(tensor, dlpack::kExchangeAttribute));
    if (parameter == nullptr || empty_like == nullptr || half_scalar == nullptr || capsule == nullptr) return nullptr;
    const auto* exchange =
        static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.get(), dlpack::kExchangeName));
    if (exchange == nullptr || exchange->version.major != dlpack::kMajorVersion ||
        exchange->view_from_python == nullptr) {
      return nullptr;
    }
    const auto name = [](const char* text) { return PyUnicode_InternFromString(text); };
    return new Torch{
        tensor,         parameter,        empty_like, scalar, half_scalar, name("is_neg"), name("untyped_storage"),
        name("nbytes"), name("data_ptr"), exchange};
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
  using Type = PlainTensor::Type;
  const bool is_signed = dtype.code == dlpack::kInt;
  if (dtype.lanes != 1) return false;
  if (dtype.code == dlpack::kFloat && (dtype.bits == 16 || dtype.bits == 32 || dtype.bits == 64)) {
    tensor->type = dtype.bits == 16 ? Type::kFloat16 : dtype.bits == 32 ? Type::kFloat32 : Type::kFloat64;
  } else if (dtype.code == dlpack::kBfloat && dtype.bits == 16) {
    tensor->type = Type::kBFloat16;
  } else if (is_signed || dtype.code == dlpack::kUnsigned) {
    using Integer = IntegerType;
    tensor->type = Type::kInteger;
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
  int64_t count = 1;
  for (int d = shared.dims - 1; d >= 0; --d) {
    const int64_t size = shared.shape[d];
    if (size <= 0 || (size > 1 && shared.strides[d] != count)) return false;
    tensor->sizes[d] = size;
    count *= size;  // no larger than the storage of a contiguous tensor was
  }
  tensor->object = object;
  tensor->data = static_cast<char*>(shared.data) + shared.byte_offset;
  tensor->dims = shared.dims;
  // Values that are still to be negated, and a storage that was cut short behind the back of its tensors.
  if (call(object, torch.is_neg).get() != Py_False) return false;
  const PyReference storage = call(object, torch.untyped_storage);
  if (storage == nullptr) return false;
  const auto first = reinterpret_cast<int64_t>(tensor->data), bytes = count * (shared.type.bits / 8);
  return first - call_for_integer(storage.get(), torch.data_ptr) + bytes <=
         call_for_integer(storage.get(), torch.nbytes);
}

}  // namespace

bool read_plain(PyObject* object, PlainTensor* tensor) {
  const Torch* torch = Torch::get();
  const bool is_plain = torch != nullptr && read(*torch, object, tensor);
  if (!is_plain) PyErr_Clear();
  return is_plain;
}

PyReference empty_like(PyObject* tensor) {
  return PyReference(PyObject_CallFunctionObjArgs(Torch::get()->empty_like, tensor, nullptr));
}
PyReference empty_scalar(PlainTensor::Type type) {
  return empty_like(type == PlainTensor::Type::kBFloat16 ? Torch::get()->half_scalar : Torch::get()->scalar);
}
PyReference empty_vector(int64_t size) {
  return PyReference(PyObject_CallMethod(Torch::get()->scalar, "new_empty", "L", static_cast<long long>(size)));
}
void* memory_of(const PyReference& tensor) {
  dlpack::TensorView shared;
  if (Torch::get()->exchange->view_from_python(tensor.get(), &shared) != 0) return nullptr;
  return shared.data;
}

}  // namespace charlm
