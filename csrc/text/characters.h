// How often each character, byte or word is in a text.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "utf8.h"
#include "words.h"

namespace charlm::text {

class CharacterCounts {
 public:
  // Counts the characters of some text, and returns how many they are. Throws InvalidUtf8.
  int64_t add(std::string_view text);

  // Those that the text has, each in UTF-8, by code point, with its count.
  std::vector<std::pair<std::string, int64_t>> sorted() const;

 private:
  static constexpr int kPageSize = 256;
  using Page = std::array<int64_t, kPageSize>;

  // Of ASCII, four times: the same count is not added to twice in a row.
  std::array<std::array<int64_t, 0x80>, 4> ascii_{};
  std::array<std::unique_ptr<Page>, kEndOfUnicode / kPageSize> pages_;
};

class ByteCounts {
 public:
  int64_t add(std::string_view text);

  // All 256, each as a string of one byte.
  std::vector<std::pair<std::string, int64_t>> sorted() const;

 private:
  std::array<int64_t, 256> counts_{};
};

class WordCounts {
 public:
  // Counts the words of a line. Throws InvalidUtf8.
  int64_t add(std::string_view line);

  // Counts the words of the next piece of a stream; its boundaries are tokens, too. Throws InvalidUtf8.
  int64_t add_to_stream(std::string_view piece);

  // Those that the text has, by their bytes.
  std::vector<std::pair<std::string, int64_t>> sorted() const;

 private:
  void count(std::string_view word);

  WordTable words_;
  std::vector<int64_t> counts_;
  Paragraphs paragraphs_;
};

}  // namespace charlm::text
