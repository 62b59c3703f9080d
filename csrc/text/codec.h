// Characters, bytes or words to tokens and back.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "words.h"

namespace charlm::text {

// Thrown with the place, in the text handed in, of the first character or word that has no token.
struct UnknownSymbol {
  int64_t offset;
  int64_t size;
};

// Thrown with the position of the first token that stands for nothing.
struct UnknownToken {
  int64_t position;
};

// Thrown where a text has more tokens than there is room for.
struct TooManyTokens {};

// Bytes of the smallest token type that holds tokens below `size`: 1 (uint8_t), 2 (int16_t) or 4 (int32_t).
inline int token_size_for(int64_t size) { return size <= 0x100 ? 1 : size <= 0x8000 ? 2 : 4; }

// The codecs have the same members. Token is uint8_t, int16_t or int32_t, and `token_size` bytes large.
//
//   encode           writes the tokens of a text from `out` on, and returns where the next one goes
//   encode_stream    the same for the next piece of a stream; Stream is what must be known of those before
//   decode           the text in UTF-8, or in bytes
//
// Encoding throws InvalidUtf8, UnknownSymbol and TooManyTokens, decoding UnknownToken.

// Token i stands for characters[i].
class CharacterCodec {
 public:
  struct Stream {};

  // `characters` is sorted and distinct; others have the token `unknown`, -1 for none, and so has characters[absent],
  // which a boundary of lines is in none of them. std::invalid_argument if they are not.
  CharacterCodec(std::u32string characters, int64_t unknown, int64_t absent);

  int64_t size() const { return static_cast<int64_t>(characters_.size()); }

  template <typename Token>
  Token* encode(std::string_view text, Token* out, const Token* out_end) const;
  template <typename Token>
  Token* encode_stream(std::string_view piece, Stream&, Token* out, const Token* out_end) const {
    return encode(piece, out, out_end);
  }
  template <typename Token>
  std::string decode(std::span<const Token> tokens) const;

  static int64_t count(std::string_view text) { return count_characters(text); }
  static int64_t count_stream(std::string_view piece, Stream&) { return count_characters(piece); }

 private:
  static constexpr int kPageSize = 256;
  using Page = std::array<int32_t, kPageSize>;

  int32_t token_of(char32_t character) const { return pages_[page_of_[character / kPageSize]][character % kPageSize]; }

  std::u32string characters_;
  std::array<int32_t, 0x80> ascii_;                       // the tokens of ASCII, -1 for none: the common case
  std::array<uint16_t, 0x110000 / kPageSize> page_of_{};  // all of Unicode in two steps; page 0 has no tokens
  std::vector<Page> pages_;
};

// Token i is byte i.
class ByteCodec {
 public:
  struct Stream {};

  static int64_t size() { return 256; }

  template <typename Token>
  Token* encode(std::string_view text, Token* out, const Token* out_end) const;
  template <typename Token>
  Token* encode_stream(std::string_view piece, Stream&, Token* out, const Token* out_end) const {
    return encode(piece, out, out_end);
  }
  template <typename Token>
  std::string decode(std::span<const Token> tokens) const;

  static int64_t count(std::string_view text) { return static_cast<int64_t>(text.size()); }
  static int64_t count_stream(std::string_view piece, Stream&) { return count(piece); }
};

// Token i stands for words[i], and one of them for a boundary, which is shown as "\n".
class WordCodec {
 public:
  using Stream = Paragraphs;

  // `words` are distinct, one of them "\n"; others have the token of "<unk>" where `unknown`. std::invalid_argument if
  // one has white space in it, or is not what for_each_word finds.
  WordCodec(const std::vector<std::string>& words, int64_t unknown);

  int64_t size() const { return words_.size(); }

  template <typename Token>
  Token* encode(std::string_view text, Token* out, const Token* out_end) const;
  template <typename Token>
  Token* encode_stream(std::string_view piece, Stream& paragraphs, Token* out, const Token* out_end) const;
  // Words are joined by spaces, but at boundaries.
  template <typename Token>
  std::string decode(std::span<const Token> tokens) const;

  static int64_t count(std::string_view text);
  static int64_t count_stream(std::string_view piece, Stream& paragraphs);

 private:
  int64_t token_of(std::string_view text, const uint8_t* begin, const uint8_t* end) const;

  WordTable words_;
  int64_t boundary_;
  int64_t unknown_;
};

}  // namespace charlm::text
