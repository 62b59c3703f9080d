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
#include "contexts.h"
#include "frame.h"
#include "sampler_bindings.h"
#include "text_bindings.h"

namespace charlm::text {
namespace {

void frame(int token_size, int index_size, const py::buffer& tokens, const py::buffer& ends, const py::buffer& order,
           int64_t context_length, int64_t boundary, const py::buffer& framed, const py::buffer& framed_ends) {
  const py::buffer_info tokens_info = tokens.request(), ends_info = ends.request(), order_info = order.request(),
                        framed_info = framed.request(), framed_ends_info = framed_ends.request();
  with_token_type(token_size, [&](auto token) {
    with_index_type(index_size, [&](auto index) {
      using Token = decltype(token);
      using Index = decltype(index);
      const auto all_tokens = view_as<Token>(tokens_info);
      const auto all_ends = view_as<Index>(ends_info);
      const auto lines = view_as<Index>(order_info);
      const auto out = writable_view_as<Token>(framed_info);
      const auto out_ends = writable_view_as<Index>(framed_ends_info);
      if (boundary < std::numeric_limits<Token>::min() || boundary > std::numeric_limits<Token>::max()) {
        throw std::out_of_range("boundary = " + std::to_string(boundary) + " is no token of " +
                                std::to_string(sizeof(Token)) + " bytes");
      }
      const int64_t characters = all_ends.empty() ? 0 : all_ends.back();
      framed_size(characters, std::ssize(lines), context_length);
      if (characters > static_cast<int64_t>(all_tokens.size())) {
        throw std::out_of_range("ends must rise from 0 to the number of tokens");
      }
      if (characters + std::ssize(lines) > std::numeric_limits<Index>::max()) {
        throw std::length_error("too many examples for index_size=4");
      }
      py::gil_scoped_release release;
      frame_lines(all_tokens, all_ends, lines, context_length, static_cast<Token>(boundary), out, out_ends);
    });
  });
}

py::tuple distinct_contexts(int token_size, int index_size, const py::buffer& tokens, const py::buffer& ends,
                            int64_t context_length, int64_t vocab_size, int64_t step, bool with_index) {
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
        check_examples(all_tokens, all_ends, context_length, vocab_size, step);
      }
      const int64_t examples = all_ends.empty() || !with_index ? 0 : all_ends.back();
      auto [index_bytes, index] = allocate<Index>(examples / step + (examples % step != 0));
      DistinctContexts<Token> distinct;
      {
        py::gil_scoped_release release;
        distinct = with_index ? find_distinct_contexts(all_tokens, all_ends, context_length, step, index)
                              : count_distinct_contexts(all_tokens, all_ends, context_length, vocab_size, step);
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

  bind_texts(m);
  bind_sampler(m);
  m.def("frame_lines", &frame, py::arg("token_size"), py::arg("index_size"), py::arg("tokens"), py::arg("ends"),
        py::arg("order"), py::arg("context_length"), py::arg("boundary"), py::arg("framed"), py::arg("framed_ends"));
  m.def("distinct_contexts", &distinct_contexts, py::arg("token_size"), py::arg("index_size"), py::arg("tokens"),
        py::arg("ends"), py::arg("context_length"), py::arg("vocab_size"), py::arg("step") = 1,
        py::arg("with_index") = true);
}
