#include "codec.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "utf8.h"

namespace charlm::text {
namespace {

template <typename Token>
void put(int64_t token, Token*& out, const Token* out_end) {
  if (out == out_end) throw TooManyTokens{};
  *out++ = static_cast<Token>(token);
}

// Whether the text is one word, and nothing else.
bool is_word(std::string_view text) {
  int64_t words = 0;
  bool whole = false, spaces = false;
  for_each_word(
      text,
      [&](const uint8_t* begin, const uint8_t* end) {
        ++words;
        whole = view_of(begin, end) == text;
      },
      [&](char32_t) { spaces = true; });
  return words == 1 && whole && !spaces;
}

}  // namespace

CharacterCodec::CharacterCodec(std::u32string characters, int64_t unknown, int64_t absent)
    : characters_(std::move(characters)) {
  if (unknown < -1 || unknown >= size()) throw std::invalid_argument("unknown must be a token or -1");
  Page empty;
  empty.fill(static_cast<int32_t>(unknown));
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
    const bool present = static_cast<int64_t>(i) != absent;
    pages_[page][character % kPageSize] = static_cast<int32_t>(present ? static_cast<int64_t>(i) : unknown);
  }
  for (char32_t c = 0; c < ascii_.size(); ++c) ascii_[c] = token_of(c);
}

template <typename Token>
Token* CharacterCodec::encode(std::string_view text, Token* out, const Token* out_end) const {
  const uint8_t* const begin = bytes_of(text);
  const uint8_t* const end = begin + text.size();
  for (const uint8_t* p = begin; p < end;) {
    // Eight at a time; what has no token is looked at again, one by one.
    while (end - p >= 8 && out_end - out >= 8 && is_ascii(p)) {
      int32_t known = 0;
      for (int i = 0; i < 8; ++i) {
        const int32_t token = ascii_[p[i]];
        known |= token;
        out[i] = static_cast<Token>(token);
      }
      if (known < 0) break;
      p += 8;
      out += 8;
    }
    for (const uint8_t* const stop = std::min(p + 8, end); p < stop;) {
      char32_t character = 0;
      int size = 1;
      int32_t token = 0;
      if (*p < 0x80) {
        token = ascii_[*p];
      } else {
        size = decode_utf8(p, end, character);
        if (size == 0) throw InvalidUtf8{p - begin};
        token = token_of(character);
      }
      if (token < 0) throw UnknownSymbol{p - begin, size};
      put(token, out, out_end);
      p += size;
    }
  }
  return out;
}

template <typename Token>
std::string CharacterCodec::decode(std::span<const Token> tokens) const {
  std::string text;
  text.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto token = static_cast<int64_t>(tokens[i]);
    if (token < 0 || token >= size()) throw UnknownToken{static_cast<int64_t>(i)};
    append_utf8(text, characters_[static_cast<size_t>(token)]);
  }
  return text;
}

template <typename Token>
Token* ByteCodec::encode(std::string_view text, Token* out, const Token* out_end) const {
  if (out_end - out < std::ssize(text)) throw TooManyTokens{};
  const uint8_t* const begin = bytes_of(text);
  return std::copy(begin, begin + text.size(), out);
}

template <typename Token>
std::string ByteCodec::decode(std::span<const Token> tokens) const {
  std::string text;
  text.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto token = static_cast<int64_t>(tokens[i]);
    if (token < 0 || token >= size()) throw UnknownToken{static_cast<int64_t>(i)};
    text.push_back(static_cast<char>(token));
  }
  return text;
}

WordCodec::WordCodec(const std::vector<std::string>& words, int64_t unknown) : unknown_(unknown) {
  if (unknown < -1 || unknown >= std::ssize(words)) throw std::invalid_argument("unknown must be a token or -1");
  for (const std::string& word : words) {
    if (word != "\n" && !is_word(word)) throw std::invalid_argument("'" + word + "' is not a word");
    if (words_.insert(word) != words_.size() - 1 || words_.size() > std::ssize(words)) {
      throw std::invalid_argument("words must be distinct");
    }
  }
  boundary_ = words_.find("\n");
  if (words_.size() != std::ssize(words) || boundary_ < 0) throw std::invalid_argument("words must be distinct");
}

int64_t WordCodec::token_of(std::string_view text, const uint8_t* begin, const uint8_t* end) const {
  const int64_t token = words_.find(view_of(begin, end));
  if (token >= 0) return token;
  if (unknown_ < 0) throw UnknownSymbol{begin - bytes_of(text), end - begin};
  return unknown_;
}

template <typename Token>
Token* WordCodec::encode(std::string_view text, Token* out, const Token* out_end) const {
  for_each_word(
      text, [&](const uint8_t* begin, const uint8_t* end) { put(token_of(text, begin, end), out, out_end); },
      [](char32_t) {});
  return out;
}

template <typename Token>
Token* WordCodec::encode_stream(std::string_view piece, Stream& paragraphs, Token* out, const Token* out_end) const {
  for_each_word_of_stream(
      piece, paragraphs,
      [&](const uint8_t* begin, const uint8_t* end) { put(token_of(piece, begin, end), out, out_end); },
      [&] { put(boundary_, out, out_end); });
  return out;
}

template <typename Token>
std::string WordCodec::decode(std::span<const Token> tokens) const {
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto token = static_cast<int64_t>(tokens[i]);
    if (token < 0 || token >= size()) throw UnknownToken{static_cast<int64_t>(i)};
    if (token != boundary_ && !text.empty() && text.back() != '\n') text.push_back(' ');
    text.append(words_[token]);
  }
  return text;
}

int64_t WordCodec::count(std::string_view text) {
  int64_t words = 0;
  for_each_word(text, [&](const uint8_t*, const uint8_t*) { ++words; }, [](char32_t) {});
  return words;
}

int64_t WordCodec::count_stream(std::string_view piece, Stream& paragraphs) {
  int64_t tokens = 0;
  for_each_word_of_stream(piece, paragraphs, [&](const uint8_t*, const uint8_t*) { ++tokens; }, [&] { ++tokens; });
  return tokens;
}

#define CHARLM_INSTANTIATE(Codec, Token)                                       \
  template Token* Codec::encode(std::string_view, Token*, const Token*) const; \
  template std::string Codec::decode(std::span<const Token>) const;
CHARLM_INSTANTIATE(CharacterCodec, uint8_t)
CHARLM_INSTANTIATE(CharacterCodec, int16_t)
CHARLM_INSTANTIATE(CharacterCodec, int32_t)
CHARLM_INSTANTIATE(ByteCodec, uint8_t)
CHARLM_INSTANTIATE(ByteCodec, int16_t)
CHARLM_INSTANTIATE(ByteCodec, int32_t)
CHARLM_INSTANTIATE(WordCodec, uint8_t)
CHARLM_INSTANTIATE(WordCodec, int16_t)
CHARLM_INSTANTIATE(WordCodec, int32_t)
#undef CHARLM_INSTANTIATE
#define CHARLM_INSTANTIATE(Token) \
  template Token* WordCodec::encode_stream(std::string_view, Stream&, Token*, const Token*) const;
CHARLM_INSTANTIATE(uint8_t)
CHARLM_INSTANTIATE(int16_t)
CHARLM_INSTANTIATE(int32_t)
#undef CHARLM_INSTANTIATE

}  // namespace charlm::text
