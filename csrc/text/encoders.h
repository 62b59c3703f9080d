// Texts to tokens, piece by piece, into arrays whose sizes were counted before.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "codec.h"

namespace charlm::text {

// The splits that lines go into. Each line has the number of its split; kDropped is in none.
constexpr size_t kSplits = 3;
constexpr uint8_t kDropped = 255;

// A text as one stream of tokens.
template <typename Codec>
class StreamEncoder {
 public:
  // Writes the tokens of the next piece, and returns how many tokens there are by now. Throws what the codec throws.
  template <typename Token>
  int64_t add(const Codec& codec, std::string_view piece, std::span<Token> tokens);

 private:
  typename Codec::Stream stream_;
  int64_t size_ = 0;
};

// The number of lines (lines.h) of each split, and of the tokens in them.
template <typename Codec>
class LineTotals {
 public:
  // Counts those of the next piece, which is made of whole lines. Line i of the text goes into splits[i], or, where
  // that is empty, all into `split`. Throws std::out_of_range where there are more lines than splits.
  void add(std::string_view piece, std::span<const uint8_t> splits, size_t split);

  std::array<int64_t, kSplits> lines{};
  std::array<int64_t, kSplits> tokens{};

 private:
  int64_t line_ = 0;
};

// The lines of a text between boundaries: those of split 0, then those of 1 and 2, as frame.h has them.
template <typename Codec>
class LineFramer {
 public:
  // std::invalid_argument if a number is negative, std::length_error if the sizes are more than memory can address.
  LineFramer(const std::array<int64_t, kSplits>& lines, const std::array<int64_t, kSplits>& tokens,
             int64_t context_length, int64_t boundary);

  // How many tokens and lines there will be.
  int64_t size() const { return size_; }
  int64_t lines() const { return lines_; }

  // Writes the lines of the next piece: `context_length` boundaries and the tokens of each, and in `ends` the number of
  // examples up to and including it. Throws what the codec throws, and std::out_of_range where the lines are not those
  // that were counted.
  template <typename Token, typename Index>
  void add(const Codec& codec, std::string_view piece, std::span<const uint8_t> splits, size_t split,
           std::span<Token> tokens, std::span<Index> ends);

  // Writes the boundary that closes the last line; std::out_of_range unless all lines have come.
  template <typename Token>
  void close(std::span<Token> tokens);

  // Lets the next text begin, whose lines have splits of their own.
  void next_text() { line_ = 0; }

 private:
  // Where the next line of a split goes, and the end of the split.
  struct Region {
    int64_t token = 0, last_token = 0;
    int64_t line = 0, last_line = 0;
    int64_t examples = 0;
  };

  int64_t context_length_, boundary_;
  int64_t size_ = 1, lines_ = 0;
  int64_t line_ = 0;
  std::array<Region, kSplits> regions_;
};

// The number of the split of a line; std::out_of_range where there is none.
size_t split_of(int64_t line, std::span<const uint8_t> splits, size_t split);

}  // namespace charlm::text
