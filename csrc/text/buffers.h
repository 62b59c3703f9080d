// Arrays between Python and C++: they come in as buffers and go out as bytearrays, which torch.frombuffer reads in
// place.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace charlm::text {

namespace py = pybind11;

// The memory of a one-dimensional contiguous buffer as elements of T: of bytes, or of numbers of the same kind and
// size. The caller keeps the buffer alive.
template <typename T>
std::span<const T> view_as(const py::buffer_info& info) {
  const auto bytes = static_cast<size_t>(info.size * info.itemsize);
  const bool is_floating = info.format.find_first_of("efdg") != std::string::npos;
  if (info.itemsize != 1 && (info.itemsize != sizeof(T) || is_floating != std::is_floating_point_v<T>)) {
    throw std::invalid_argument("expected a buffer of bytes or of elements of " + std::to_string(sizeof(T)) +
                                " bytes, got one of format '" + info.format + "'");
  }
  if (info.ndim != 1 || (info.size > 1 && info.strides[0] != info.itemsize)) {
    throw std::invalid_argument("expected a contiguous one-dimensional buffer");
  }
  if (bytes == 0) return {};
  if (bytes % sizeof(T) != 0 || reinterpret_cast<uintptr_t>(info.ptr) % alignof(T) != 0) {
    throw std::invalid_argument("expected a buffer of whole, aligned elements of " + std::to_string(sizeof(T)) +
                                " bytes");
  }
  return {static_cast<const T*>(info.ptr), bytes / sizeof(T)};
}

// The same memory, to write to.
template <typename T>
std::span<T> writable_view_as(const py::buffer_info& info) {
  if (info.readonly) throw std::invalid_argument("expected a buffer that can be written to");
  const auto view = view_as<T>(info);
  return {const_cast<T*>(view.data()), view.size()};
}

// A bytearray of `size` uninitialised elements of T, and a view of them.
template <typename T>
std::pair<py::bytearray, std::span<T>> allocate(int64_t size) {
  if (size < 0 || size > std::numeric_limits<Py_ssize_t>::max() / static_cast<int64_t>(sizeof(T))) {
    throw std::bad_alloc();
  }
  PyObject* object = PyByteArray_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size * sizeof(T)));
  if (object == nullptr) throw py::error_already_set();
  auto bytes = py::reinterpret_steal<py::bytearray>(object);
  return {bytes, {reinterpret_cast<T*>(PyByteArray_AS_STRING(object)), static_cast<size_t>(size)}};
}

template <typename T>
void shrink(const py::bytearray& bytes, int64_t size) {
  if (PyByteArray_Resize(bytes.ptr(), static_cast<Py_ssize_t>(size * sizeof(T))) != 0) throw py::error_already_set();
}

template <typename T>
py::bytearray to_bytearray(const std::vector<T>& values) {
  return py::bytearray(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

// Calls f with a zero of the token type of that size.
template <typename F>
auto with_token_type(int token_size, F f) {
  switch (token_size) {
    case 1:
      return f(uint8_t{0});
    case 2:
      return f(int16_t{0});
    case 4:
      return f(int32_t{0});
    default:
      throw std::invalid_argument("token_size must be 1, 2 or 4, got " + std::to_string(token_size));
  }
}

// The same for the type of line ends and example indices.
template <typename F>
auto with_index_type(int index_size, F f) {
  switch (index_size) {
    case 4:
      return f(int32_t{0});
    case 8:
      return f(int64_t{0});
    default:
      throw std::invalid_argument("index_size must be 4 or 8, got " + std::to_string(index_size));
  }
}

inline py::str to_str(const std::u32string& text) {
  PyObject* object = PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, text.data(), static_cast<Py_ssize_t>(text.size()));
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(object);
}

}  // namespace charlm::text
