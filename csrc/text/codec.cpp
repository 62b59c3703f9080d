#include "codec.h"

#include <stdexcept>
#include <utility>

#include "lines.h"
#include "utf8.h"

namespace charlm::text {

Codec::Codec(std::u32string characters) : characters_(std::move(characters)) {
  Page empty;
  empty.fill(-1);
  pages_.push_back(empty);
  for (size_t i = 0; i < characters_.size(); ++i) {
    const char32_t character = characters_[i];
    if (character >= kEndOfUnicode || (i > 0 && character <= characters_[i - 1])) {
      throw std::invalid_argument("characters must be sorted and distinct");
    }
    uint16_t& page = page_of_[character / kPageSize];
    if (page == 0) {
      page = static_cast<uint16_t>(pages_.size());
      pages_.push_back(empty);
    }
    pages_[page][character % kPageSize] = static_cast<int32_t>(i);
  }
  for (char32_t c = 0; c < ascii_.size(); ++c) ascii_[c] = token_of(c);
}

// Encodes `text`, which starts at byte `offset` of what the caller handed in, and returns where the next token goes.
template <typename Token>
Token* Codec::encode_at(std::string_view text, int64_t offset, Token* out, const Token* out_end) const {
  const uint8_t* const begin = bytes_of(text);
  const uint8_t* const end = begin + text.size();
  for (const uint8_t* p = begin; p < end;) {
    char32_t character = 0;
    int size = 1;
    int32_t token = 0;
    if (*p < 0x80) {
      token = ascii_[*p];
    } else {
      size = decode_utf8(p, end, character);
      if (size == 0) throw InvalidUtf8{offset + (p - begin)};
      token = token_of(character);
    }
    if (token < 0) throw UnknownCharacter{offset + (p - begin)};
    if (out == out_end) throw std::length_error("more characters than tokens");
    *out++ = static_cast<Token>(token);
    p += size;
  }
  return out;
}

template <typename Token>
void Codec::encode(std::string_view text, std::span<Token> tokens) const {
  encode_at(text, 0, tokens.data(), tokens.data() + tokens.size());
}

template <typename Token, typename Index>
int64_t Codec::encode_lines(std::string_view text, std::span<Token> tokens, std::span<Index> ends) const {
  Token* out = tokens.data();
  size_t lines = 0;
  for_each_line(text, [&](std::string_view line) {
    if (lines == ends.size()) throw std::length_error("more lines than ends");
    out = encode_at(line, line.data() - text.data(), out, tokens.data() + tokens.size());
    ends[lines++] = static_cast<Index>(out - tokens.data());
  });
  return static_cast<int64_t>(lines);
}

template <typename Token>
std::string Codec::decode(std::span<const Token> tokens) const {
  std::string text;
  text.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto token = static_cast<int64_t>(tokens[i]);
    if (token < 0 || token >= size()) throw UnknownToken{static_cast<int64_t>(i)};
    append_utf8(text, characters_[static_cast<size_t>(token)]);
  }
  return text;
}

#define CHARLM_INSTANTIATE(Token)                                                                     \
  template void Codec::encode(std::string_view, std::span<Token>) const;                              \
  template int64_t Codec::encode_lines(std::string_view, std::span<Token>, std::span<int32_t>) const; \
  template int64_t Codec::encode_lines(std::string_view, std::span<Token>, std::span<int64_t>) const; \
  template std::string Codec::decode(std::span<const Token>) const;
CHARLM_INSTANTIATE(uint8_t)
CHARLM_INSTANTIATE(int16_t)
CHARLM_INSTANTIATE(int32_t)
#undef CHARLM_INSTANTIATE

}  // namespace charlm::text
