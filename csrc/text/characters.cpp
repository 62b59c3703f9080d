#include "characters.h"

#include <bitset>
#include <cstring>
#include <memory>

#include "lines.h"
#include "utf8.h"

namespace charlm::text {
namespace {

// True if every one of the eight bytes lies in 0x01..0x7F.
bool is_plain_ascii(const uint8_t* p) {
  uint64_t word = 0;
  std::memcpy(&word, p, sizeof word);
  constexpr uint64_t kHighBits = 0x8080808080808080;
  constexpr uint64_t kOnes = 0x0101010101010101;
  return ((word | (word - kOnes)) & kHighBits) == 0;
}

class CharacterSet {
 public:
  void add(std::string_view text, int64_t offset) {
    const uint8_t* const begin = bytes_of(text);
    const uint8_t* const end = begin + text.size();
    for (const uint8_t* p = begin; p < end;) {
      if (*p < 0x80) {
        ascii_[*p++] = true;
        continue;
      }
      char32_t character = 0;
      const int size = decode_utf8(p, end, character);
      if (size == 0) throw InvalidUtf8{offset + (p - begin)};
      others_->set(character);
      p += size;
    }
  }

  std::u32string sorted() const {
    std::u32string characters;
    for (char32_t c = 0; c < kEndOfUnicode; ++c) {
      if (c < 0x80 ? ascii_[c] : others_->test(c)) characters.push_back(c);
    }
    return characters;
  }

 private:
  bool ascii_[0x80] = {};  // apart from the rest: one store per character
  std::unique_ptr<std::bitset<kEndOfUnicode>> others_ = std::make_unique<std::bitset<kEndOfUnicode>>();
};

}  // namespace

int64_t find_not_text(std::string_view text) {
  const uint8_t* const begin = bytes_of(text);
  const uint8_t* const end = begin + text.size();
  for (const uint8_t* p = begin; p < end;) {
    if (end - p >= 8 && is_plain_ascii(p)) {
      p += 8;
      continue;
    }
    char32_t character = 0;
    const int size = decode_utf8(p, end, character);
    if (size == 0 || character == 0) return p - begin;
    p += size;
  }
  return -1;
}

std::u32string distinct_characters(std::string_view text, bool by_line) {
  CharacterSet characters;
  if (by_line) {
    for_each_line(text, [&](std::string_view line) { characters.add(line, line.data() - text.data()); });
  } else {
    characters.add(text, 0);
  }
  return characters.sorted();
}

}  // namespace charlm::text
