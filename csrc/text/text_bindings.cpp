#include "text_bindings.h"

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "buffers.h"
#include "characters.h"
#include "codec.h"
#include "encoders.h"
#include "lines.h"
#include "text_reader.h"
#include "utf8.h"

namespace charlm::text {
namespace {

// Pieces of a text come and go with the GIL held: what has a state is for one thread at a time, and a piece is short.

std::string_view text_of(const py::buffer_info& info) {
  const auto bytes = view_as<char>(info);
  return {bytes.data(), bytes.size()};
}

using AnyCodec = std::variant<CharacterCodec, ByteCodec, WordCodec>;

struct TextCodec {
  AnyCodec codec;

  int64_t size() const {
    return std::visit([](const auto& c) { return static_cast<int64_t>(c.size()); }, codec);
  }
  int token_size() const { return token_size_for(size()); }
};

std::shared_ptr<TextCodec> codec_of_characters(std::u32string characters, int64_t unknown, int64_t absent) {
  return std::make_shared<TextCodec>(TextCodec{CharacterCodec(std::move(characters), unknown, absent)});
}

std::shared_ptr<TextCodec> codec_of_words(const py::list& words, int64_t unknown) {
  std::vector<std::string> all;
  all.reserve(words.size());
  for (const py::handle word : words) all.push_back(word.cast<std::string>());
  return std::make_shared<TextCodec>(TextCodec{WordCodec(all, unknown)});
}

py::bytearray encode(const TextCodec& any, const py::bytes& utf8) {
  const std::string_view text = utf8;
  return std::visit(
      [&](const auto& codec) {
        using Codec = std::decay_t<decltype(codec)>;
        return with_token_type(any.token_size(), [&](auto zero) {
          typename Codec::Stream counted, encoded;
          auto [bytes, tokens] = allocate<decltype(zero)>(Codec::count_stream(text, counted));
          {
            py::gil_scoped_release release;
            codec.encode_stream(text, encoded, tokens.data(), tokens.data() + tokens.size());
          }
          return bytes;
        });
      },
      any.codec);
}

py::bytes decode(const TextCodec& any, const py::buffer& tokens) {
  const py::buffer_info info = tokens.request();
  return with_token_type(any.token_size(), [&](auto zero) {
    std::string text;
    {
      py::gil_scoped_release release;
      text = std::visit([&](const auto& codec) { return codec.decode(view_as<decltype(zero)>(info)); }, any.codec);
    }
    return py::bytes(text);
  });
}

// How many of each symbol a text has, of lines or as one stream.
class TextCounts {
 public:
  TextCounts(const std::string& tokens_are, bool by_line) : by_line_(by_line) {
    if (tokens_are == "characters") {
      counts_.emplace<CharacterCounts>();
    } else if (tokens_are == "bytes") {
      counts_.emplace<ByteCounts>();
    } else if (tokens_are == "words") {
      counts_.emplace<WordCounts>();
    } else {
      throw std::invalid_argument("tokens_are must be characters, bytes or words");
    }
  }

  void add(const py::buffer& piece) {
    const py::buffer_info info = piece.request();
    const std::string_view text = text_of(info);
    std::visit(
        [&](auto& counts) {
          if (by_line_) {
            for_each_line(text, [&](std::string_view line) {
              ++lines;
              tokens += counts.add(line);
            });
          } else if constexpr (std::is_same_v<std::decay_t<decltype(counts)>, WordCounts>) {
            tokens += counts.add_to_stream(text);
          } else {
            tokens += counts.add(text);
          }
        },
        counts_);
  }

  py::list sorted() const {
    py::list list;
    for (const auto& [symbol, count] : std::visit([](const auto& counts) { return counts.sorted(); }, counts_)) {
      list.append(py::make_tuple(py::bytes(symbol), count));
    }
    return list;
  }

  int64_t lines = 0;
  int64_t tokens = 0;

 private:
  bool by_line_;
  std::variant<CharacterCounts, ByteCounts, WordCounts> counts_;
};

// For a class template of encoders.h: which of them goes with a codec.
template <template <typename> typename Of>
using ForAnyCodec = std::variant<Of<CharacterCodec>, Of<ByteCodec>, Of<WordCodec>>;

template <template <typename> typename Of, typename... Arguments>
ForAnyCodec<Of> for_codec(const AnyCodec& codec, const Arguments&... arguments) {
  return std::visit([&](const auto& c) { return ForAnyCodec<Of>(Of<std::decay_t<decltype(c)>>(arguments...)); }, codec);
}

// Calls f with the codec, and with that one of `any` which goes with it.
template <template <typename> typename Of, typename F>
auto with_codec(const AnyCodec& codec, ForAnyCodec<Of>& any, F f) {
  return std::visit([&](const auto& c) { return f(c, std::get<Of<std::decay_t<decltype(c)>>>(any)); }, codec);
}

class TextStreamEncoder {
 public:
  explicit TextStreamEncoder(std::shared_ptr<TextCodec> codec)
      : codec_(std::move(codec)), encoder_(for_codec<StreamEncoder>(codec_->codec)) {}

  int64_t add(const py::buffer& piece, const py::buffer& tokens) {
    const py::buffer_info piece_info = piece.request();
    const py::buffer_info tokens_info = tokens.request();
    return with_token_type(codec_->token_size(), [&](auto zero) {
      const auto view = writable_view_as<decltype(zero)>(tokens_info);
      return with_codec<StreamEncoder>(codec_->codec, encoder_, [&](const auto& codec, auto& encoder) {
        return encoder.add(codec, text_of(piece_info), view);
      });
    });
  }

 private:
  std::shared_ptr<TextCodec> codec_;
  ForAnyCodec<StreamEncoder> encoder_;
};

using Numbers = std::array<int64_t, kSplits>;

py::tuple to_tuple(const Numbers& numbers) { return py::make_tuple(numbers[0], numbers[1], numbers[2]); }

Numbers to_numbers(const py::tuple& values) {
  if (values.size() != kSplits) throw std::invalid_argument("expected a number for each of three splits");
  return {values[0].cast<int64_t>(), values[1].cast<int64_t>(), values[2].cast<int64_t>()};
}

class TextLineTotals {
 public:
  explicit TextLineTotals(const std::shared_ptr<TextCodec>& codec) : totals_(for_codec<LineTotals>(codec->codec)) {}

  void add(const py::buffer& piece, const py::buffer& splits, size_t split) {
    const py::buffer_info piece_info = piece.request();
    const py::buffer_info splits_info = splits.request();
    std::visit([&](auto& totals) { totals.add(text_of(piece_info), view_as<uint8_t>(splits_info), split); }, totals_);
  }

  py::tuple lines() const {
    return std::visit([](const auto& totals) { return to_tuple(totals.lines); }, totals_);
  }
  py::tuple tokens() const {
    return std::visit([](const auto& totals) { return to_tuple(totals.tokens); }, totals_);
  }

 private:
  ForAnyCodec<LineTotals> totals_;
};

class TextLineFramer {
 public:
  TextLineFramer(std::shared_ptr<TextCodec> codec, const py::tuple& lines, const py::tuple& tokens,
                 int64_t context_length, int64_t boundary)
      : codec_(std::move(codec)),
        framer_(for_codec<LineFramer>(codec_->codec, to_numbers(lines), to_numbers(tokens), context_length, boundary)) {
    if (boundary < 0 || boundary >= codec_->size()) throw std::invalid_argument("boundary must be a token");
  }

  int64_t size() const {
    return std::visit([](const auto& framer) { return framer.size(); }, framer_);
  }

  void add(const py::buffer& piece, const py::buffer& splits, size_t split, const py::buffer& tokens,
           const py::buffer& ends, int index_size) {
    const py::buffer_info piece_info = piece.request(), splits_info = splits.request(), tokens_info = tokens.request(),
                          ends_info = ends.request();
    with_token_type(codec_->token_size(), [&](auto token) {
      with_index_type(index_size, [&](auto index) {
        const auto all_tokens = writable_view_as<decltype(token)>(tokens_info);
        const auto all_ends = writable_view_as<decltype(index)>(ends_info);
        if (all_tokens.size() > static_cast<size_t>(std::numeric_limits<decltype(index)>::max())) {
          throw std::length_error("too many examples for index_size=4");
        }
        with_codec<LineFramer>(codec_->codec, framer_, [&](const auto& codec, auto& framer) {
          framer.add(codec, text_of(piece_info), view_as<uint8_t>(splits_info), split, all_tokens, all_ends);
        });
      });
    });
  }

  void next_text() {
    std::visit([](auto& framer) { framer.next_text(); }, framer_);
  }

  void close(const py::buffer& tokens) {
    const py::buffer_info info = tokens.request();
    with_token_type(codec_->token_size(), [&](auto zero) {
      const auto view = writable_view_as<decltype(zero)>(info);
      std::visit([&](auto& framer) { framer.close(view); }, framer_);
    });
  }

 private:
  std::shared_ptr<TextCodec> codec_;
  ForAnyCodec<LineFramer> framer_;
};

py::bytes read(TextReader& reader, const py::buffer& data, bool last) {
  const py::buffer_info info = data.request();
  const std::string_view piece = reader.read(text_of(info), last);
  return py::bytes(piece.data(), piece.size());
}

// Exceptions of C++ as those of Python. The arguments of each are numbers.
void register_errors(py::module_& m) {
  static py::handle not_text = py::exception<NotText>(m, "NotText", PyExc_ValueError).release();
  static py::handle invalid_utf8 = py::exception<InvalidUtf8>(m, "InvalidUtf8", PyExc_ValueError).release();
  static py::handle unknown_symbol = py::exception<UnknownSymbol>(m, "UnknownSymbol", PyExc_ValueError).release();
  static py::handle unknown_token = py::exception<UnknownToken>(m, "UnknownToken", PyExc_ValueError).release();
  py::register_exception_translator([](std::exception_ptr thrown) {
    const auto raise = [](py::handle type, auto... where) {
      PyErr_SetObject(type.ptr(), py::make_tuple(where...).ptr());
    };
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const NotText& error) {
      raise(not_text, error.offset, error.byte, error.place.line, error.place.column);
    } catch (const InvalidUtf8& error) {
      raise(invalid_utf8, error.offset);
    } catch (const UnknownSymbol& error) {
      raise(unknown_symbol, error.offset, error.size);
    } catch (const UnknownToken& error) {
      raise(unknown_token, error.position);
    } catch (const TooManyTokens&) {
      PyErr_SetString(PyExc_IndexError, "the text has more tokens than were counted");
    }
  });
}

}  // namespace

void bind_texts(py::module_& m) {
  register_errors(m);
  py::class_<TextReader>(m, "TextReader")
      .def(py::init<std::string>(), py::arg("cuts"))
      .def("read", &read, py::arg("data"), py::arg("last"))
      .def_property_readonly("line", [](const TextReader& reader) { return reader.place().line; })
      .def_property_readonly("column", [](const TextReader& reader) { return reader.place().column; });
  py::class_<TextCounts>(m, "Counts")
      .def(py::init<std::string, bool>(), py::arg("tokens_are"), py::kw_only(), py::arg("by_line"))
      .def("add", &TextCounts::add, py::arg("piece"))
      .def("sorted", &TextCounts::sorted)
      .def_readonly("lines", &TextCounts::lines)
      .def_readonly("tokens", &TextCounts::tokens);
  py::class_<TextCodec, std::shared_ptr<TextCodec>>(m, "Codec")
      .def_static("of_characters", &codec_of_characters, py::arg("characters"), py::arg("unknown") = -1,
                  py::arg("absent") = -1)
      .def_static("of_bytes", [] { return std::make_shared<TextCodec>(TextCodec{ByteCodec()}); })
      .def_static("of_words", &codec_of_words, py::arg("words"), py::arg("unknown") = -1)
      .def_property_readonly("token_size", &TextCodec::token_size)
      .def("encode", &encode, py::arg("utf8"))
      .def("decode", &decode, py::arg("tokens"));
  py::class_<TextStreamEncoder>(m, "StreamEncoder")
      .def(py::init<std::shared_ptr<TextCodec>>(), py::arg("codec"))
      .def("add", &TextStreamEncoder::add, py::arg("piece"), py::arg("tokens"));
  py::class_<TextLineTotals>(m, "LineTotals")
      .def(py::init<std::shared_ptr<TextCodec>>(), py::arg("codec"))
      .def("add", &TextLineTotals::add, py::arg("piece"), py::arg("splits"), py::arg("split"))
      .def_property_readonly("lines", &TextLineTotals::lines)
      .def_property_readonly("tokens", &TextLineTotals::tokens);
  py::class_<TextLineFramer>(m, "LineFramer")
      .def(py::init<std::shared_ptr<TextCodec>, py::tuple, py::tuple, int64_t, int64_t>(), py::arg("codec"),
           py::arg("lines"), py::arg("tokens"), py::arg("context_length"), py::arg("boundary"))
      .def_property_readonly("size", &TextLineFramer::size)
      .def("add", &TextLineFramer::add, py::arg("piece"), py::arg("splits"), py::arg("split"), py::arg("tokens"),
           py::arg("ends"), py::arg("index_size"))
      .def("next_text", &TextLineFramer::next_text)
      .def("close", &TextLineFramer::close, py::arg("tokens"));
}

}  // namespace charlm::text
