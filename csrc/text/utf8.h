// UTF-8: strict decoding, encoding, and the white space of Python's str.isspace.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace charlm::text {

// Thrown with the byte offset, in the text handed in, of the first byte that is not UTF-8.
struct InvalidUtf8 {
  int64_t offset;
};

constexpr char32_t kEndOfUnicode = 0x110000;

inline const uint8_t* bytes_of(std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

// Whether eight bytes are ASCII.
inline bool is_ascii(const uint8_t* p) {
  uint64_t word = 0;
  std::memcpy(&word, p, sizeof word);
  return (word & 0x8080808080808080) == 0;
}

// Decodes the character at p into `character` and returns the number of its bytes, or 0 if [p, end) does not start with
// one. Strict as in Unicode 15, table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF.
inline int decode_utf8(const uint8_t* p, const uint8_t* end, char32_t& character) {
  const auto continues = [&](int i) { return (p[i] & 0xC0) == 0x80; };
  const auto available = end - p;
  if (available < 1) return 0;
  if (p[0] < 0x80) {
    character = p[0];
    return 1;
  }
  if (p[0] < 0xE0) {
    if (p[0] < 0xC2 || available < 2 || !continues(1)) return 0;
    character = static_cast<char32_t>((p[0] & 0x1F) << 6 | (p[1] & 0x3F));
    return 2;
  }
  if (p[0] < 0xF0) {
    if (available < 3 || !continues(1) || !continues(2)) return 0;
    character = static_cast<char32_t>((p[0] & 0x0F) << 12 | (p[1] & 0x3F) << 6 | (p[2] & 0x3F));
    const bool surrogate = character >= 0xD800 && character < 0xE000;
    return character < 0x800 || surrogate ? 0 : 3;
  }
  if (p[0] > 0xF4 || available < 4 || !continues(1) || !continues(2) || !continues(3)) return 0;
  character = static_cast<char32_t>((p[0] & 0x07) << 18 | (p[1] & 0x3F) << 12 | (p[2] & 0x3F) << 6 | (p[3] & 0x3F));
  return character < 0x10000 || character >= kEndOfUnicode ? 0 : 4;
}

inline void append_utf8(std::string& text, char32_t character) {
  const auto append = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (character < 0x80) {
    append(character);
  } else if (character < 0x800) {
    append(0xC0 | character >> 6);
    append(0x80 | (character & 0x3F));
  } else if (character < 0x10000) {
    append(0xE0 | character >> 12);
    append(0x80 | (character >> 6 & 0x3F));
    append(0x80 | (character & 0x3F));
  } else {
    append(0xF0 | character >> 18);
    append(0x80 | (character >> 12 & 0x3F));
    append(0x80 | (character >> 6 & 0x3F));
    append(0x80 | (character & 0x3F));
  }
}

// The number of characters of valid UTF-8.
inline int64_t count_characters(std::string_view text) {
  int64_t count = 0;
  for (const char byte : text) count += (static_cast<uint8_t>(byte) & 0xC0) != 0x80;
  return count;
}

inline bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace charlm::text
