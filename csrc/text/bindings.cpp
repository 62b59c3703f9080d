// The Python module charlm._text. Arrays come in as buffers and go out as bytearrays, which torch.frombuffer reads in
// place: neither torch nor NumPy is needed. Types and meaning: charlm/_text.pyi. The algorithms run without the GIL.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "characters.h"
#include "codec.h"
#include "contexts.h"
#include "frame.h"
#include "sampler.h"
#include "utf8.h"

namespace py = pybind11;

namespace charlm::text {
namespace {

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

py::str to_str(const std::u32string& text) {
  PyObject* object = PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, text.data(), static_cast<Py_ssize_t>(text.size()));
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(object);
}

py::bytearray encode(const Codec& codec, const py::bytes& utf8) {
  const std::string_view text = utf8;
  return with_token_type(codec.token_size(), [&](auto zero) {
    auto [bytes, tokens] = allocate<decltype(zero)>(count_characters(text));
    {
      py::gil_scoped_release release;
      codec.encode(text, tokens);
    }
    return bytes;
  });
}

py::tuple encode_lines(const Codec& codec, const py::bytes& utf8, int index_size) {
  const std::string_view text = utf8;
  return with_token_type(codec.token_size(), [&](auto token) {
    return with_index_type(index_size, [&](auto index) {
      // Room for all; line ends, trailing white space and blank lines leave some of it over.
      auto [token_bytes, tokens] = allocate<decltype(token)>(count_characters(text));
      auto [end_bytes, ends] = allocate<decltype(index)>(std::count(text.begin(), text.end(), '\n') + 1);
      if (tokens.size() > static_cast<size_t>(std::numeric_limits<decltype(index)>::max())) {
        throw std::length_error("the text is too long for index_size=4");
      }
      int64_t lines = 0;
      {
        py::gil_scoped_release release;
        lines = codec.encode_lines(text, tokens, ends);
      }
      shrink<decltype(token)>(token_bytes, lines == 0 ? 0 : ends[lines - 1]);
      shrink<decltype(index)>(end_bytes, lines);
      return py::make_tuple(token_bytes, end_bytes);
    });
  });
}

py::str decode(const Codec& codec, const py::buffer& tokens) {
  const py::buffer_info info = tokens.request();
  return with_token_type(codec.token_size(), [&](auto zero) {
    std::string text;
    {
      py::gil_scoped_release release;
      text = codec.decode(view_as<decltype(zero)>(info));
    }
    return py::str(text);
  });
}

int64_t first_not_text(const py::bytes& data) {
  const std::string_view text = data;
  py::gil_scoped_release release;
  return find_not_text(text);
}

py::str characters_of(const py::bytes& utf8, bool by_line) {
  const std::string_view text = utf8;
  std::u32string characters;
  {
    py::gil_scoped_release release;
    characters = distinct_characters(text, by_line);
  }
  return to_str(characters);
}

py::tuple frame(int token_size, int index_size, const py::buffer& tokens, const py::buffer& ends,
                const py::buffer& order, int64_t context_length, int64_t boundary) {
  const py::buffer_info tokens_info = tokens.request();
  const py::buffer_info ends_info = ends.request();
  const py::buffer_info order_info = order.request();
  return with_token_type(token_size, [&](auto token) {
    return with_index_type(index_size, [&](auto index) {
      using Token = decltype(token);
      using Index = decltype(index);
      const auto all_tokens = view_as<Token>(tokens_info);
      const auto all_ends = view_as<Index>(ends_info);
      const auto lines = view_as<Index>(order_info);
      if (boundary < std::numeric_limits<Token>::min() || boundary > std::numeric_limits<Token>::max()) {
        throw std::out_of_range("boundary = " + std::to_string(boundary) + " is no token of " +
                                std::to_string(sizeof(Token)) + " bytes");
      }
      const int64_t characters = all_ends.empty() ? 0 : all_ends.back();
      const int64_t size = framed_size(characters, std::ssize(lines), context_length);
      if (characters > static_cast<int64_t>(all_tokens.size())) {
        throw std::out_of_range("ends must rise from 0 to the number of tokens");
      }
      if (characters + std::ssize(lines) > std::numeric_limits<Index>::max()) {
        throw std::length_error("too many examples for index_size=4");
      }
      auto [framed_bytes, framed] = allocate<Token>(size);
      auto [end_bytes, framed_ends] = allocate<Index>(std::ssize(lines));
      {
        py::gil_scoped_release release;
        frame_lines(all_tokens, all_ends, lines, context_length, static_cast<Token>(boundary), framed, framed_ends);
      }
      return py::make_tuple(framed_bytes, end_bytes);
    });
  });
}

py::tuple distinct_contexts(int token_size, int index_size, const py::buffer& tokens, const py::buffer& ends,
                            int64_t context_length, int64_t vocab_size) {
  const py::buffer_info tokens_info = tokens.request();
  const py::buffer_info ends_info = ends.request();
  return with_token_type(token_size, [&](auto token) {
    return with_index_type(index_size, [&](auto number) {
      using Token = decltype(token);
      using Index = decltype(number);
      const auto all_tokens = view_as<Token>(tokens_info);
      const auto all_ends = view_as<Index>(ends_info);
      {
        py::gil_scoped_release release;
        check_examples(all_tokens, all_ends, context_length, vocab_size);
      }
      auto [index_bytes, index] = allocate<Index>(all_ends.empty() ? 0 : all_ends.back());
      DistinctContexts<Token> distinct;
      {
        py::gil_scoped_release release;
        distinct = find_distinct_contexts(all_tokens, all_ends, context_length, index);
      }
      return py::make_tuple(to_bytearray(distinct.starts), index_bytes, to_bytearray(distinct.row_ptr),
                            to_bytearray(distinct.targets), to_bytearray(distinct.counts));
    });
  });
}

// A sampler for one thread at a time. Others get an error: to wait with the GIL for one that needs it is a deadlock.
// One that ran out of memory halfway through a change can only be thrown away.
class ExclusiveSampler {
 public:
  ExclusiveSampler(std::u32string characters, int64_t context_length, int64_t max_contexts)
      : sampler_(std::move(characters), context_length, max_contexts) {}

  void start(const py::buffer& context, uint64_t seed, int64_t first, int64_t count, int64_t max_tokens, int32_t end) {
    const std::unique_lock lock = acquire();
    const py::buffer_info info = context.request();
    change([&] { sampler_.start(view_as<int32_t>(info), seed, first, count, max_tokens, end); });
  }

  py::bytearray advance() {
    const std::unique_lock lock = acquire();
    std::span<const int32_t> missing;
    change([&] { missing = sampler_.advance(); });
    auto [bytes, contexts] = allocate<int32_t>(std::ssize(missing));
    std::copy(missing.begin(), missing.end(), contexts.begin());
    return bytes;
  }

  void add(const py::buffer& weights) {
    const std::unique_lock lock = acquire();
    const py::buffer_info info = weights.request();
    change([&] { sampler_.add(view_as<double>(info)); });
  }

  int64_t unfinished() {
    const std::unique_lock lock = acquire();
    return sampler_.unfinished();
  }

  py::list texts(const std::u32string& prefix) {
    const std::unique_lock lock = acquire();
    py::list texts(sampler_.size());
    std::u32string text;
    for (int64_t i = 0; i < sampler_.size(); ++i) {
      text = prefix;
      sampler_.append_text(i, text);
      texts[i] = to_str(text);
    }
    return texts;
  }

 private:
  std::unique_lock<std::mutex> acquire() {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) throw std::runtime_error("another thread is using this Sampler");
    if (broken_) throw std::runtime_error("this Sampler ran out of memory, and cannot go on");
    return lock;
  }

  // Without the GIL. What the caller has done wrong is found before anything changes.
  template <typename Change>
  void change(const Change& body) {
    py::gil_scoped_release release;
    broken_ = true;
    try {
      body();
    } catch (const std::invalid_argument&) {
      broken_ = false;
      throw;
    }
    broken_ = false;
  }

  std::mutex mutex_;
  bool broken_ = false;
  Sampler sampler_;
};

}  // namespace
}  // namespace charlm::text

PYBIND11_MODULE(_text, m) {
  using namespace charlm::text;
  m.doc() = "Text to tokens, line framing, the index of distinct contexts, and texts drawn from probabilities.";

  // The argument of each is the byte offset or the token position.
  static py::handle invalid_utf8 = py::exception<InvalidUtf8>(m, "InvalidUtf8", PyExc_ValueError).release();
  static py::handle unknown_character =
      py::exception<UnknownCharacter>(m, "UnknownCharacter", PyExc_ValueError).release();
  static py::handle unknown_token = py::exception<UnknownToken>(m, "UnknownToken", PyExc_ValueError).release();
  py::register_exception_translator([](std::exception_ptr thrown) {
    const auto raise = [](py::handle type, int64_t where) { PyErr_SetObject(type.ptr(), py::int_(where).ptr()); };
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const InvalidUtf8& error) {
      raise(invalid_utf8, error.offset);
    } catch (const UnknownCharacter& error) {
      raise(unknown_character, error.offset);
    } catch (const UnknownToken& error) {
      raise(unknown_token, error.position);
    }
  });

  py::class_<Codec>(m, "Codec")
      .def(py::init<std::u32string>(), py::arg("characters"))
      .def_property_readonly("token_size", &Codec::token_size)
      .def("encode", &encode, py::arg("utf8"))
      .def("encode_lines", &encode_lines, py::arg("utf8"), py::arg("index_size"))
      .def("decode", &decode, py::arg("tokens"));
  py::class_<ExclusiveSampler>(m, "Sampler")
      .def(py::init<std::u32string, int64_t, int64_t>(), py::arg("characters"), py::arg("context_length"),
           py::arg("max_contexts"))
      .def("start", &ExclusiveSampler::start, py::arg("context"), py::arg("seed"), py::arg("first"), py::arg("count"),
           py::arg("max_tokens"), py::arg("end"))
      .def("advance", &ExclusiveSampler::advance)
      .def("add", &ExclusiveSampler::add, py::arg("weights"))
      .def_property_readonly("unfinished", &ExclusiveSampler::unfinished)
      .def("texts", &ExclusiveSampler::texts, py::arg("prefix"));
  m.def("find_not_text", &first_not_text, py::arg("data"));
  m.def("distinct_characters", &characters_of, py::arg("utf8"), py::kw_only(), py::arg("by_line"));
  m.def("frame_lines", &frame, py::arg("token_size"), py::arg("index_size"), py::arg("tokens"), py::arg("ends"),
        py::arg("order"), py::arg("context_length"), py::arg("boundary"));
  m.def("distinct_contexts", &distinct_contexts, py::arg("token_size"), py::arg("index_size"), py::arg("tokens"),
        py::arg("ends"), py::arg("context_length"), py::arg("vocab_size"));
}
