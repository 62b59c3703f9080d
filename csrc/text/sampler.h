// Many texts drawn from tables of next-token probabilities, one table per context.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace charlm::text {

// All texts go on until each has ended or stands at a context without a table; the caller supplies these tables, and
// the texts go on. Tables are kept: a context is asked for once, until as many as the limit are known and a text needs
// another one. Then all are dropped, and those that are still needed are asked for again.
//
// Token number p of text number i is a function of the seed, i, p and the table alone: it is drawn with 64 bits of
// Philox4x32-10, the key being the seed and the counter (i, p / 2), of which p takes the first half if it is even and
// the second if it is odd (the earlier word is the more significant). So neither the texts drawn beside it nor the
// tables dropped on the way change a text.
class Sampler {
 public:
  // Contexts of `context_length` tokens 0 .. characters.size() - 1. std::invalid_argument if an argument is less than 1
  // or max_contexts * characters.size() is 2^31 or more.
  Sampler(std::u32string characters, int64_t context_length, int64_t max_contexts);

  // Begins the texts number first .. first + count - 1: they continue `context`, which is no part of them, up to the
  // token `end` (left out) or to `max_tokens`; an `end` of -1 never comes. Texts from before are gone, tables stay.
  // std::invalid_argument if the context is not context_length tokens, `end` is out of range or a number is negative.
  void start(std::span<const int32_t> context, uint64_t seed, int64_t first, int64_t count, int64_t max_tokens,
             int32_t end);

  // Continues the texts, by at most 2^24 tokens in all, and returns the contexts (M, T) for which tables are missing.
  std::span<const int32_t> advance();

  // Gives the first K of the missing contexts their tables, from weights (K, V) >= 0 that are proportional to the
  // probabilities. std::invalid_argument if there are not as many or they are no distribution; all before are kept.
  void add(std::span<const double> weights);

  // The number of texts that have not ended.
  int64_t unfinished() const { return static_cast<int64_t>(unfinished_.size()); }

  int64_t size() const { return count_; }
  void append_text(int64_t i, std::u32string& text) const;

 private:
  static constexpr uint32_t kUnknown = UINT32_MAX;

  // A class that can be drawn, and its column of an alias table (Walker 1977): all columns are as likely, and in one
  // the class itself has probability threshold / 2^32 and the class of column `alias` the rest.
  struct Column {
    uint32_t threshold;
    uint32_t alias;
    uint32_t token;
    uint32_t next;  // the table that follows this token, or kUnknown
  };

  // Columns begin .. begin + size - 1; none while the table is missing.
  struct Table {
    uint32_t begin = 0;
    uint32_t size = 0;
  };

  struct Text {
    std::u32string tokens;  // not characters; the context it started from, and what was drawn
    uint32_t table;         // of the next token, or kUnknown
  };

  struct Hash {
    using is_transparent = void;
    size_t operator()(std::u32string_view context) const { return std::hash<std::u32string_view>{}(context); }
  };

  bool draw(uint64_t number, Text& text, int64_t& budget);
  uint32_t table_after(const Text& text);
  void build(std::span<const double> weights);
  void forget_tables();

  std::u32string characters_;
  size_t context_length_;
  size_t max_contexts_;

  std::unordered_map<std::u32string, uint32_t, Hash, std::equal_to<>> table_of_;
  std::vector<Table> tables_;
  std::vector<Column> columns_;
  size_t filled_ = 0;             // tables 0 .. filled_ - 1 have columns
  std::vector<int32_t> missing_;  // the contexts of the tables after the last time that all were filled
  std::vector<uint64_t> shares_;  // while a table is built: of each column, in 2^-32 of the mean share
  std::vector<uint32_t> below_;   // columns whose share is less than the mean
  std::vector<uint32_t> others_;

  std::vector<Text> texts_;  // count_ of them in use; the others keep their memory for the next ones
  int64_t count_ = 0;
  std::vector<uint32_t> unfinished_;
  uint64_t seed_ = 0;
  uint64_t first_ = 0;
  size_t full_size_ = 0;  // of Text::tokens
  uint32_t end_ = kUnknown;
};

}  // namespace charlm::text
