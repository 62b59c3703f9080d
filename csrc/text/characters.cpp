#include "characters.h"

#include <algorithm>

namespace charlm::text {

int64_t CharacterCounts::add(std::string_view text) {
  const uint8_t* const begin = bytes_of(text);
  const uint8_t* const end = begin + text.size();
  int64_t count = 0;
  for (const uint8_t* p = begin; p < end;) {
    while (end - p >= 8 && is_ascii(p)) {
      for (size_t i = 0; i < 8; ++i) ++ascii_[i % 4][p[i]];
      p += 8;
      count += 8;
    }
    for (const uint8_t* const stop = std::min(p + 8, end); p < stop; ++count) {
      if (*p < 0x80) {
        ++ascii_[0][*p++];
        continue;
      }
      char32_t character = 0;
      const int size = decode_utf8(p, end, character);
      if (size == 0) throw InvalidUtf8{p - begin};
      std::unique_ptr<Page>& page = pages_[character / kPageSize];
      if (page == nullptr) page = std::make_unique<Page>();
      ++(*page)[character % kPageSize];
      p += size;
    }
  }
  return count;
}

std::vector<std::pair<std::string, int64_t>> CharacterCounts::sorted() const {
  std::vector<std::pair<std::string, int64_t>> found;
  const auto add = [&](char32_t character, int64_t count) {
    if (count == 0) return;
    std::string utf8;
    append_utf8(utf8, character);
    found.emplace_back(std::move(utf8), count);
  };
  for (char32_t c = 0; c < 0x80; ++c) add(c, ascii_[0][c] + ascii_[1][c] + ascii_[2][c] + ascii_[3][c]);
  for (size_t page = 0; page < pages_.size(); ++page) {
    if (pages_[page] == nullptr) continue;
    for (size_t i = 0; i < kPageSize; ++i) add(static_cast<char32_t>(page * kPageSize + i), (*pages_[page])[i]);
  }
  return found;
}

int64_t ByteCounts::add(std::string_view text) {
  for (const char byte : text) ++counts_[static_cast<uint8_t>(byte)];
  return static_cast<int64_t>(text.size());
}

std::vector<std::pair<std::string, int64_t>> ByteCounts::sorted() const {
  std::vector<std::pair<std::string, int64_t>> all;
  for (size_t byte = 0; byte < counts_.size(); ++byte) {
    all.emplace_back(std::string(1, static_cast<char>(byte)), counts_[byte]);
  }
  return all;
}

int64_t WordCounts::add(std::string_view line) {
  int64_t words = 0;
  for_each_word(
      line,
      [&](const uint8_t* begin, const uint8_t* end) {
        count(view_of(begin, end));
        ++words;
      },
      [](char32_t) {});
  return words;
}

int64_t WordCounts::add_to_stream(std::string_view piece) {
  int64_t tokens = 0;
  for_each_word_of_stream(
      piece, paragraphs_,
      [&](const uint8_t* begin, const uint8_t* end) {
        count(view_of(begin, end));
        ++tokens;
      },
      [&] { ++tokens; });
  return tokens;
}

std::vector<std::pair<std::string, int64_t>> WordCounts::sorted() const {
  std::vector<std::pair<std::string, int64_t>> found;
  found.reserve(counts_.size());
  for (int64_t i = 0; i < words_.size(); ++i) found.emplace_back(words_[i], counts_[static_cast<size_t>(i)]);
  std::sort(found.begin(), found.end());
  return found;
}

void WordCounts::count(std::string_view word) {
  const auto number = static_cast<size_t>(words_.insert(word));
  if (number == counts_.size()) counts_.push_back(0);
  ++counts_[number];
}

}  // namespace charlm::text
