// Many texts drawn from tables of next-token probabilities, one table per context.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "automaton.h"
#include "chain.h"
#include "text_set.h"

namespace charlm::text {

// All texts go on until each has ended or stands at a context without a table; the caller supplies these tables, and
// the texts go on. Tables are kept: a context is asked for once, until as many as the limit are known and a text needs
// another one. Then all are dropped, and those that are still needed are asked for again.
//
// A text may be held to rules. Where a Chain could be solved for them its probabilities are drawn from, and every text
// keeps them; otherwise, and where texts are excluded, a text that does not keep them is drawn again, until it does.
//
// Token number p of the attempt number a at text number i is a function of the seed, i, a, p and the tables alone: it
// is drawn with 64 bits of Philox4x32-10, the key being the seed and the counter (i, a * 2^32 + p / 2), of which p
// takes the first half if it is even and the second if it is odd (the earlier word is the more significant). So neither
// the texts drawn beside it nor the tables dropped on the way change a text. Where texts must be distinct, a text is
// drawn again if one of a lower number equals it.
class Sampler {
 public:
  // How texts begin and end. Numbers of tokens are without those of `context` and `prefix`.
  struct Start {
    std::span<const int32_t> context;  // what they continue
    std::string prefix;                // how each begins, in UTF-8
    uint64_t seed = 0;
    int64_t first = 0;  // number of the first one
    int64_t count = 0;
    int64_t min_tokens = 0;
    int64_t max_tokens = 0;
    int32_t end = -1;         // the token that ends a text, and is no part of it; -1 never comes
    bool must_end = false;    // or a text of max_tokens ends there
    bool is_unique = false;   // no two texts are equal, those of earlier starts included
    bool is_chained = false;  // draw from the chain, at `length`
    uint32_t state = 1;       // of the automaton
    int64_t length = 0;       // of the prefix in tokens
    int64_t attempts = 1;     // at a text, at most
  };

  // Contexts of `context_length` tokens 0 .. characters.size() - 1. std::invalid_argument if an argument is less than 1
  // or max_contexts * characters.size() is 2^31 or more.
  Sampler(std::u32string characters, int64_t context_length, int64_t max_contexts);

  // What texts are held to; begin with its `reset`.
  Chain& chain() { return chain_; }
  // Texts that are not drawn.
  void exclude(std::string_view text) { excluded_.insert(text); }
  // The same of what stands between boundaries. std::invalid_argument if a token is out of range.
  template <typename Token>
  void exclude_lines(std::span<const Token> tokens, int32_t boundary);

  // Begins `count` texts. Those from before are gone; tables, and what is excluded, stay. std::invalid_argument if the
  // context is not context_length tokens, or a number is out of range.
  void start(const Start& start);

  // Continues the texts, by at most 2^24 tokens in all, and returns the contexts (M, T) for which tables are missing.
  std::span<const int32_t> advance();

  // Gives the first K of the missing contexts their tables, from weights (K, V) >= 0 that are proportional to the
  // probabilities. std::invalid_argument if there are not as many or they are no distribution; all before are kept.
  void add(std::span<const double> weights);

  // The number of texts that are to be drawn further.
  int64_t unfinished() const;

  // The number of texts: less than `count` where the one that comes next took all its attempts.
  int64_t size() const { return count_; }
  // How often a text was drawn since `start`, up to its end or until it broke a rule.
  int64_t draws() const { return draws_; }
  void append_text(int64_t i, std::string& utf8) const;

 private:
  static constexpr uint32_t kUnknown = UINT32_MAX;
  // Texts that are drawn side by side: while one waits for memory, another goes on.
  static constexpr size_t kLanes = 8;

  // The table that follows a token; or, while that has not been looked up, and of the end, the token with this bit.
  static constexpr uint32_t kToken = uint32_t{1} << 31;

  // A class that can be drawn has a column of an alias table (Walker 1977): all columns are as likely, and in one the
  // class itself has probability threshold / 2^32 and another one the rest. What follows stands here for both.
  struct Column {
    uint32_t threshold;
    uint32_t own;
    uint32_t other;
  };

  // Columns begin .. begin + size - 1; none while the table is missing.
  struct Table {
    uint32_t begin = 0;
    uint32_t size = 0;
    uint32_t token = 0;  // the last one of its context
  };

  struct Text {
    std::u32string tokens;  // not characters; the context it started from, and what was drawn
    uint32_t table = 0;     // of the next token, or kUnknown; in a chain the node
    uint32_t state = 0;     // of the automaton
    uint32_t attempt = 0;
    bool is_drawn = false;
  };

  // A text that is being drawn, and the random words of its last block of Philox.
  struct Lane {
    uint32_t i;
    Text* text;
    uint64_t counter;  // of the next token: what it stands at in the block is its lowest bit
    std::array<uint32_t, 4> words;
  };

  // What one more token came to. A text waits for a table, or the budget is spent.
  enum class Step { kDrawn, kWaits, kEnded, kBroke };

  struct Hash {
    using is_transparent = void;
    size_t operator()(std::u32string_view context) const { return std::hash<std::u32string_view>{}(context); }
  };

  Lane lane(uint32_t i);
  template <bool kChained>
  void draw(int64_t& budget);
  template <bool kChained>
  Step step(Lane& lane, int64_t& budget);
  Step step_in_tables(Text& text, uint64_t high, uint64_t low);
  Step step_in_chain(Text& text, uint64_t bits);
  bool is_done(Lane& lane, Step step, int64_t& budget);
  bool begin_again(uint32_t i, int64_t& budget);
  template <bool kChained>
  void settle(int64_t& budget);
  void unlink();
  uint32_t table_after(const Text& text);
  void build(std::span<const double> weights);
  void forget_tables();
  void append_symbol(uint32_t token, std::string& utf8) const;

  // UTF-8 of token i is symbols_[symbol_starts_[i]] up to that of the next.
  std::string symbols_;
  std::vector<uint32_t> symbol_starts_;
  size_t vocab_size_;
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

  Chain chain_;
  TextSet excluded_;
  std::string scratch_;

  std::vector<Text> texts_;  // count_ of them in use; the others keep their memory for the next ones
  int64_t count_ = 0;
  std::vector<uint32_t> unfinished_;
  int64_t settled_ = 0;  // texts 0 .. settled_ - 1 are distinct, and excluded for the others
  int64_t draws_ = 0;
  Start start_;
  std::u32string start_context_;
  uint32_t start_table_ = kUnknown;
  size_t full_size_ = 0;  // of Text::tokens
  uint32_t end_ = kUnknown;
};

}  // namespace charlm::text
