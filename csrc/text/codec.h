// Characters to tokens and back.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace charlm::text {

// Thrown with the byte offset, in the text handed in, of the first character that has no token.
struct UnknownCharacter {
  int64_t offset;
};

// Thrown with the position of the first token that stands for no character.
struct UnknownToken {
  int64_t position;
};

// Token i stands for characters[i]. Token is uint8_t, int16_t or int32_t.
class Codec {
 public:
  // `characters` is sorted and distinct; std::invalid_argument if not.
  explicit Codec(std::u32string characters);

  int64_t size() const { return static_cast<int64_t>(characters_.size()); }

  // Bytes of the smallest token type that holds every token: 1 (uint8_t), 2 (int16_t) or 4 (int32_t).
  int token_size() const { return size() <= 0x100 ? 1 : size() <= 0x8000 ? 2 : 4; }

  // Writes one token per character; `tokens` holds count_characters(text). Throws InvalidUtf8, UnknownCharacter.
  template <typename Token>
  void encode(std::string_view text, std::span<Token> tokens) const;

  // The lines of a text (lines.h), one after the other: the tokens of line i are those from ends[i - 1] to ends[i].
  // Returns the number of lines; `tokens` has room for count_characters(text), `ends` for one more than the text has
  // "\n". Index is int32_t or int64_t. Throws InvalidUtf8, UnknownCharacter.
  template <typename Token, typename Index>
  int64_t encode_lines(std::string_view text, std::span<Token> tokens, std::span<Index> ends) const;

  // The text in UTF-8. Throws UnknownToken.
  template <typename Token>
  std::string decode(std::span<const Token> tokens) const;

 private:
  static constexpr int kPageSize = 256;
  using Page = std::array<int32_t, kPageSize>;

  int32_t token_of(char32_t character) const { return pages_[page_of_[character / kPageSize]][character % kPageSize]; }

  template <typename Token>
  Token* encode_at(std::string_view text, int64_t offset, Token* out, const Token* end) const;

  std::u32string characters_;
  std::array<int32_t, 0x80> ascii_;                       // the tokens of ASCII, -1 for none: the common case
  std::array<uint16_t, 0x110000 / kPageSize> page_of_{};  // all of Unicode in two steps; page 0 has no tokens
  std::vector<Page> pages_;
};

}  // namespace charlm::text
