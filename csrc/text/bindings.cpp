// The Python module charlm._text. Arrays come in as buffers and go out as bytearrays, which torch.frombuffer reads in
// place: neither torch nor NumPy is needed. Types and meaning: charlm/_text.pyi. The algorithms run without the GIL.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "buffers.h"
#include "characters.h"
#include "codec.h"
#include "contexts.h"
#include "frame.h"
#include "sampler_bindings.h"
#include "utf8.h"

namespace charlm::text {
namespace {

// Calls f with a zero of the type of line ends and example indices.
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
  bind_sampler(m);
  m.def("find_not_text", &first_not_text, py::arg("data"));
  m.def("distinct_characters", &characters_of, py::arg("utf8"), py::kw_only(), py::arg("by_line"));
  m.def("frame_lines", &frame, py::arg("token_size"), py::arg("index_size"), py::arg("tokens"), py::arg("ends"),
        py::arg("order"), py::arg("context_length"), py::arg("boundary"));
  m.def("distinct_contexts", &distinct_contexts, py::arg("token_size"), py::arg("index_size"), py::arg("tokens"),
        py::arg("ends"), py::arg("context_length"), py::arg("vocab_size"));
}
