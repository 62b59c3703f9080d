// Words and punctuation marks, what a text is made of for a model of words, and a table of them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "utf8.h"

namespace charlm::text {

// How texts write a word that is not in the vocabulary, which they do not have otherwise: it would be three words.
constexpr std::string_view kUnknownWord = "<unk>";

// ASCII's and Latin-1's marks and signs, and the blocks of Unicode that have nothing else.
inline bool is_punctuation(char32_t c) {
  if (c < 0x80) {
    const bool letter = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
    return !letter && !is_space(c);
  }
  return (c > 0xA0 && c < 0xC0 && c != 0xAA && c != 0xB5 && c != 0xBA) || c == 0xD7 || c == 0xF7 ||
         (c >= 0x2010 && c <= 0x205E) || (c >= 0x20A0 && c <= 0x20CF) || (c >= 0x2190 && c <= 0x245F) ||
         (c >= 0x2500 && c <= 0x2BFF) || (c >= 0x2E00 && c <= 0x2E7F) || (c >= 0x3001 && c <= 0x3003) ||
         (c >= 0x3008 && c <= 0x301F) || (c >= 0xFF01 && c <= 0xFF0F) || (c >= 0xFF1A && c <= 0xFF20) ||
         (c >= 0xFF3B && c <= 0xFF40) || (c >= 0xFF5B && c <= 0xFF65) || (c >= 0x1F300 && c <= 0x1FAFF);
}

inline bool is_apostrophe(char32_t c) { return c == '\'' || c == 0x2019; }

// Calls word(begin, end) for each word and each punctuation mark of [begin, end), and space(character) for white space.
// A word is a run of other characters, in which an apostrophe may stand between two of them. Throws InvalidUtf8.
template <typename Word, typename Space>
void for_each_word(std::string_view text, Word word, Space space) {
  const uint8_t* const begin = bytes_of(text);
  const uint8_t* const end = begin + text.size();
  // Of the character at p: what it is, and its size in bytes, 0 at the end.
  const auto at = [&](const uint8_t* p, char32_t& character) {
    if (p == end) return 0;
    if (*p < 0x80) {
      character = *p;
      return 1;
    }
    const int size = decode_utf8(p, end, character);
    if (size == 0) throw InvalidUtf8{p - begin};
    return size;
  };
  const auto in_word = [](char32_t c) { return !is_space(c) && !is_punctuation(c); };
  for (const uint8_t* p = begin; p < end;) {
    char32_t character = 0;
    const uint8_t* const start = p;
    p += at(p, character);
    if (is_space(character)) {
      space(character);
      continue;
    }
    if (in_word(character)) {
      for (;;) {
        const int size = at(p, character);
        if (size == 0) break;
        if (in_word(character)) {
          p += size;
          continue;
        }
        char32_t after = 0;
        const int after_size = is_apostrophe(character) ? at(p + size, after) : 0;
        if (after_size == 0 || !in_word(after)) break;
        p += size + after_size;
      }
    } else if (character == '<' && text.substr(static_cast<size_t>(start - begin)).starts_with(kUnknownWord)) {
      p = start + kUnknownWord.size();
    }
    word(start, p);
  }
}

inline std::string_view view_of(const uint8_t* begin, const uint8_t* end) {
  return {reinterpret_cast<const char*>(begin), static_cast<size_t>(end - begin)};
}

// Where a stream of words is: an empty line, which ends a paragraph, is a boundary between the words around it.
struct Paragraphs {
  bool any = false;      // whether a word has come
  int64_t newlines = 0;  // since the last one
};

// The words of the next piece of a stream, as for_each_word has them, and boundary() where a paragraph begins, but for
// the first. Pieces end after white space.
template <typename Word, typename Boundary>
void for_each_word_of_stream(std::string_view piece, Paragraphs& paragraphs, Word word, Boundary boundary) {
  for_each_word(
      piece,
      [&](const uint8_t* begin, const uint8_t* end) {
        if (paragraphs.any && paragraphs.newlines >= 2) boundary();
        paragraphs = {true, 0};
        word(begin, end);
      },
      [&](char32_t space) { paragraphs.newlines += space == '\n'; });
}

// Distinct words, numbered by insertion. Open addressing with linear probing, at most half full.
class WordTable {
 public:
  // The number of a word, -1 if it is not there.
  int64_t find(std::string_view word) const { return buckets_[bucket(word, hash(word))].number; }

  // The same, of a word that is put there where it is not.
  int64_t insert(std::string_view word);

  int64_t size() const { return static_cast<int64_t>(starts_.size()) - 1; }

  std::string_view operator[](int64_t number) const {
    const auto i = static_cast<size_t>(number);
    return std::string_view(characters_).substr(starts_[i], starts_[i + 1] - starts_[i]);
  }

 private:
  struct Bucket {
    uint64_t hash = 0;
    int64_t number = -1;
  };

  static uint64_t hash(std::string_view word);

  // Where a word is, or would be put.
  size_t bucket(std::string_view word, uint64_t hash) const {
    size_t i = hash >> (64 - bits_);
    while (buckets_[i].number >= 0 && (buckets_[i].hash != hash || (*this)[buckets_[i].number] != word)) {
      i = (i + 1) & (buckets_.size() - 1);
    }
    return i;
  }

  void grow();

  int bits_ = 10;
  std::vector<Bucket> buckets_ = std::vector<Bucket>(size_t{1} << bits_);
  std::string characters_;  // of all words, one after the other
  std::vector<size_t> starts_ = {0};
};

}  // namespace charlm::text
