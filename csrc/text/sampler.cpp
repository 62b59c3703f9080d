#include "sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "philox.h"
#include "utf8.h"

namespace charlm::text {
namespace {

// So that a caller who looks for signals in between does so several times a second.
constexpr int64_t kTokensPerCall = int64_t{1} << 24;
constexpr uint64_t kMeanShare = uint64_t{1} << 32;

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

}  // namespace

Sampler::Sampler(std::u32string characters, int64_t context_length, int64_t max_contexts)
    : vocab_size_(characters.size()),
      context_length_(static_cast<size_t>(context_length)),
      max_contexts_(static_cast<size_t>(max_contexts)),
      chain_(std::max<size_t>(1, vocab_size_), context_length_, max_contexts_ * vocab_size_) {
  require(vocab_size_ > 0, "characters must not be empty");
  require(context_length >= 1, "context_length must be at least 1");
  require(max_contexts >= 1, "max_contexts must be at least 1");
  require(max_contexts_ <= std::numeric_limits<int32_t>::max() / vocab_size_,
          "max_contexts times the number of characters must be less than 2^31");
  for (const char32_t character : characters) {
    symbol_starts_.push_back(static_cast<uint32_t>(symbols_.size()));
    append_utf8(symbols_, character);
  }
  symbol_starts_.push_back(static_cast<uint32_t>(symbols_.size()));
}

template <typename Token>
void Sampler::exclude_lines(std::span<const Token> tokens, int32_t boundary) {
  for (const Token token : tokens) {
    require(token >= 0 && static_cast<size_t>(token) < vocab_size_, "tokens has one that is out of range");
  }
  scratch_.clear();
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (static_cast<int32_t>(tokens[i]) != boundary) append_symbol(static_cast<uint32_t>(tokens[i]), scratch_);
    if (static_cast<int32_t>(tokens[i]) == boundary || i + 1 == tokens.size()) {
      if (!scratch_.empty()) excluded_.insert(scratch_);
      scratch_.clear();
    }
  }
}

template void Sampler::exclude_lines(std::span<const uint8_t>, int32_t);
template void Sampler::exclude_lines(std::span<const int16_t>, int32_t);
template void Sampler::exclude_lines(std::span<const int32_t>, int32_t);

void Sampler::start(const Start& start) {
  const auto vocab_size = static_cast<int64_t>(vocab_size_);
  require(start.context.size() == context_length_, "context must have context_length tokens");
  for (const int32_t token : start.context) {
    require(token >= 0 && token < vocab_size, "context has a token out of range");
  }
  require(start.end >= -1 && start.end < vocab_size, "end must be a token or -1");
  require(start.first >= 0 && start.max_tokens >= 0, "first and max_tokens must not be negative");
  require(start.max_tokens < std::numeric_limits<uint32_t>::max(), "max_tokens must be less than 2^32 - 1");
  require(start.min_tokens >= 0 && start.length >= 0, "min_tokens and length must not be negative");
  require(start.count >= 0 && start.count < std::numeric_limits<uint32_t>::max(), "count must be from 0 to 2^32 - 2");
  require(start.attempts >= 1 && start.attempts <= std::numeric_limits<uint32_t>::max(),
          "attempts must be from 1 to 2^32 - 1");
  require(start.state > 0 && start.state < chain_.automaton().states(), "state is out of range");
  require(!start.must_end || start.end >= 0, "must_end needs an end");
  uint32_t node = kUnknown;
  if (start.is_chained) {
    require(chain_.is_solved(), "the chain is not solved");
    require(start.must_end && start.end == static_cast<int32_t>(chain_.end()), "end must be that of the chain");
    require(chain_.acceptance(start.context, start.state, start.length) > 0.0, "no text from there is wanted");
    node = chain_.node(start.context, start.state);
  }

  start_context_.assign(start.context.begin(), start.context.end());
  start_ = start;
  start_.context = {};
  start_table_ = node;
  count_ = start.count;
  unfinished_.clear();
  settled_ = 0;
  draws_ = 0;
  full_size_ = context_length_ + static_cast<size_t>(start.max_tokens);
  if (end_ != static_cast<uint32_t>(start.end)) unlink();
  end_ = static_cast<uint32_t>(start.end);
  if (texts_.size() < static_cast<size_t>(count_)) texts_.resize(static_cast<size_t>(count_));
  const bool is_drawn = start.max_tokens == 0 && !start.must_end;
  for (int64_t i = 0; i < count_; ++i) {
    texts_[i].tokens = start_context_;
    texts_[i].table = start_table_;
    texts_[i].state = start.state;
    texts_[i].attempt = 0;
    texts_[i].is_drawn = is_drawn;
    if (!is_drawn) unfinished_.push_back(static_cast<uint32_t>(i));
  }
}

int64_t Sampler::unfinished() const {
  return start_.is_unique ? count_ - settled_ : static_cast<int64_t>(unfinished_.size());
}

std::span<const int32_t> Sampler::advance() {
  int64_t budget = kTokensPerCall;
  start_.is_chained ? draw<true>(budget) : draw<false>(budget);
  if (start_.is_unique) start_.is_chained ? settle<true>(budget) : settle<false>(budget);
  // Of those behind one that took all its attempts.
  std::erase_if(unfinished_, [&](uint32_t i) { return i >= count_; });
  if (budget > 0 && !unfinished_.empty() && filled_ == tables_.size() && !start_.is_chained) {
    // Nobody could go on, and no table is missing: all need one beyond the limit.
    forget_tables();
    for (const uint32_t i : unfinished_) texts_[i].table = table_after(texts_[i]);
  }
  return std::span<const int32_t>(missing_).last((tables_.size() - filled_) * context_length_);
}

// Continues all texts; those that wait stay unfinished.
template <bool kChained>
void Sampler::draw(int64_t& budget) {
  std::array<Lane, kLanes> lanes;
  size_t used = 0;
  size_t taken = 0;
  size_t kept = 0;
  const auto take = [&](Lane& free) {
    while (taken < unfinished_.size() && unfinished_[taken] >= count_) ++taken;
    if (taken == unfinished_.size()) return false;
    free = lane(unfinished_[taken++]);
    return true;
  };
  while (used < kLanes && take(lanes[used])) ++used;
  while (used > 0) {
    for (size_t l = 0; l < used;) {
      const Step step = this->step<kChained>(lanes[l], budget);
      if (step == Step::kDrawn || !is_done(lanes[l], step, budget)) {
        ++l;
        continue;
      }
      // Those that were taken are more than those that are kept.
      if (step == Step::kWaits) unfinished_[kept++] = lanes[l].i;
      if (!take(lanes[l])) lanes[l] = lanes[--used];
    }
  }
  unfinished_.resize(kept);
}

Sampler::Lane Sampler::lane(uint32_t i) {
  Text& text = texts_[i];
  const uint64_t position = text.tokens.size() - context_length_;
  Lane lane = {i, &text, uint64_t{text.attempt} << 33 | position, {}};
  // The block of a token that is the second of it: the first one finds its own.
  if (position % 2 != 0) lane.words = philox(start_.seed, static_cast<uint64_t>(start_.first) + i, lane.counter / 2);
  return lane;
}

template <bool kChained>
inline Sampler::Step Sampler::step(Lane& lane, int64_t& budget) {
  Text& text = *lane.text;
  if (budget <= 0) return Step::kWaits;
  const bool is_second = lane.counter % 2 != 0;
  if (!is_second) lane.words = philox(start_.seed, static_cast<uint64_t>(start_.first) + lane.i, lane.counter / 2);
  const uint64_t high = lane.words[is_second ? 2 : 0];
  const uint64_t low = lane.words[is_second ? 3 : 1];
  Step step = Step::kWaits;
  if constexpr (kChained) {
    step = step_in_chain(text, high << 32 | low);
  } else {
    step = step_in_tables(text, high, low);
  }
  if (step == Step::kDrawn) {
    ++lane.counter;
    --budget;
    if (!start_.must_end && text.tokens.size() == full_size_) return Step::kEnded;
  }
  return step;
}

inline Sampler::Step Sampler::step_in_tables(Text& text, uint64_t high, uint64_t low) {
  if (text.table == kUnknown) {
    const bool is_at_start = text.tokens.size() == context_length_;
    text.table = is_at_start && start_table_ != kUnknown ? start_table_ : table_after(text);
    if (text.table == kUnknown) return Step::kWaits;
    if (is_at_start) start_table_ = text.table;
  }
  const Table table = tables_[text.table];
  if (table.size == 0) return Step::kWaits;
  // The 64 random bits times the number of columns: the whole part, and 32 bits of the fraction.
  const uint64_t product = high * table.size + (low * table.size >> 32);
  Column& column = columns_[table.begin + (product >> 32)];
  uint32_t& link = static_cast<uint32_t>(product) < column.threshold ? column.own : column.other;
  const bool is_linked = (link & kToken) == 0;
  const uint32_t token = is_linked ? tables_[link].token : link & ~kToken;
  if (token == end_) {
    const bool is_wanted = text.tokens.size() - context_length_ >= static_cast<size_t>(start_.min_tokens) &&
                           (!start_.must_end || chain_.automaton().accepts(text.state));
    return is_wanted ? Step::kEnded : Step::kBroke;
  }
  if (start_.must_end) {
    text.state = chain_.automaton().step(text.state, token);
    if (text.state == 0 || text.tokens.size() == full_size_) return Step::kBroke;
  }
  text.tokens.push_back(token);
  if (is_linked) {
    text.table = link;
    return Step::kDrawn;
  }
  text.table = kUnknown;
  if (start_.must_end || text.tokens.size() < full_size_) {
    text.table = table_after(text);
    if (text.table != kUnknown) link = text.table;
  }
  return Step::kDrawn;
}

inline Sampler::Step Sampler::step_in_chain(Text& text, uint64_t bits) {
  const auto drawn = static_cast<int64_t>(text.tokens.size() - context_length_);
  const Chain::Step step = chain_.draw(text.table, start_.length + drawn, bits);
  if (step.token == end_) return Step::kEnded;
  if (text.tokens.size() == full_size_) return Step::kBroke;
  text.tokens.push_back(step.token);
  text.table = step.node;
  return Step::kDrawn;
}

// Whether a text that was not drawn on waits or is finished; otherwise it is begun again.
bool Sampler::is_done(Lane& lane, Step step, int64_t& budget) {
  if (lane.i >= count_ || step == Step::kWaits) return true;
  ++draws_;
  if (step == Step::kEnded) {
    scratch_.clear();
    if (!excluded_.empty()) append_text(lane.i, scratch_);
    if (excluded_.empty() || !excluded_.contains(scratch_)) {
      lane.text->is_drawn = true;
      return true;
    }
  }
  if (!begin_again(lane.i, budget)) return true;
  lane = this->lane(lane.i);
  return false;
}

// The next attempt at a text; false, and it and those behind it are no more, if it took all.
bool Sampler::begin_again(uint32_t i, int64_t& budget) {
  Text& text = texts_[i];
  if (++text.attempt == start_.attempts) {
    count_ = i;
    return false;
  }
  text.tokens.resize(context_length_);
  text.table = start_table_;
  text.state = start_.state;
  text.is_drawn = false;
  --budget;
  return true;
}

// Goes on with what is drawn in the order of the numbers.
template <bool kChained>
void Sampler::settle(int64_t& budget) {
  while (settled_ < count_ && texts_[settled_].is_drawn) {
    const auto i = static_cast<uint32_t>(settled_);
    scratch_.clear();
    append_text(i, scratch_);
    if (excluded_.insert(scratch_)) {
      ++settled_;
      continue;
    }
    if (!begin_again(i, budget)) return;
    Lane again = lane(i);
    Step step = Step::kDrawn;
    do {
      step = this->step<kChained>(again, budget);
    } while (step == Step::kDrawn || !is_done(again, step, budget));
    if (step == Step::kWaits) unfinished_.push_back(i);
  }
}

// The number of the table of a text's context, which may be missing as yet; kUnknown if the limit is reached.
uint32_t Sampler::table_after(const Text& text) {
  const std::u32string_view context = std::u32string_view(text.tokens).substr(text.tokens.size() - context_length_);
  if (const auto known = table_of_.find(context); known != table_of_.end()) return known->second;
  if (tables_.size() == max_contexts_) return kUnknown;
  const auto number = static_cast<uint32_t>(tables_.size());
  tables_.push_back({0, 0, static_cast<uint32_t>(context.back())});
  missing_.insert(missing_.end(), context.begin(), context.end());
  table_of_.emplace(context, number);
  return number;
}

void Sampler::add(std::span<const double> weights) {
  const size_t vocab_size = vocab_size_;
  require(weights.size() % vocab_size == 0, "weights must have one number per character and context");
  require(weights.size() / vocab_size <= tables_.size() - filled_,
          "weights must not be of more contexts than miss them");
  for (; !weights.empty(); weights = weights.subspan(vocab_size)) {
    build(weights.first(vocab_size));
    if (++filled_ == tables_.size()) missing_.clear();
  }
}

// The alias table of one distribution, in exact integers: shares are rounded down to multiples of 2^-32 of the mean
// one, and what that leaves goes to the largest. A class of weight 0 has no column, so it is never drawn. Source: Vose
// 1991, "A linear algorithm for generating random numbers with a given distribution".
void Sampler::build(std::span<const double> weights) {
  double sum = 0.0;
  for (const double weight : weights) {
    require(weight >= 0.0, "weights must not be negative or NaN");
    sum += weight;
  }
  require(sum > 0.0 && std::isfinite(sum), "the weights of a context must have a positive, finite sum");

  const size_t begin = columns_.size();
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] > 0.0) columns_.push_back({0, kToken | static_cast<uint32_t>(i), 0});
  }
  const auto columns = std::span(columns_).subspan(begin);
  const uint64_t total = columns.size() * kMeanShare;

  shares_.clear();
  uint64_t given = 0;
  for (const Column& column : columns) {
    shares_.push_back(static_cast<uint64_t>(weights[column.own & ~kToken] / sum * static_cast<double>(total)));
    given += shares_.back();
  }
  // Modulo 2^64, so it may take some away.
  *std::max_element(shares_.begin(), shares_.end()) += total - given;

  below_.clear();
  others_.clear();
  for (uint32_t c = 0; c < columns.size(); ++c) (shares_[c] < kMeanShare ? below_ : others_).push_back(c);
  // The mean of the shares in both lists stays the mean share, so there is another while there is one below it.
  while (!below_.empty()) {
    const uint32_t column = below_.back();
    const uint32_t other = others_.back();
    below_.pop_back();
    columns[column].threshold = static_cast<uint32_t>(shares_[column]);
    columns[column].other = columns[other].own;
    shares_[other] -= kMeanShare - shares_[column];
    if (shares_[other] < kMeanShare) {
      others_.pop_back();
      below_.push_back(other);
    }
  }
  for (const uint32_t column : others_) columns[column].other = columns[column].own;
  tables_[filled_].begin = static_cast<uint32_t>(begin);
  tables_[filled_].size = static_cast<uint32_t>(columns.size());
}

// What was a token on the way of some texts may be the end of others.
void Sampler::unlink() {
  for (Column& column : columns_) {
    for (uint32_t* link : {&column.own, &column.other}) {
      if ((*link & kToken) == 0) *link = kToken | tables_[*link].token;
    }
  }
}

void Sampler::forget_tables() {
  table_of_.clear();
  tables_.clear();
  columns_.clear();
  missing_.clear();
  filled_ = 0;
  start_table_ = kUnknown;
}

void Sampler::append_symbol(uint32_t token, std::string& utf8) const {
  const uint32_t begin = symbol_starts_[token];
  utf8.append(symbols_, begin, symbol_starts_[token + 1] - begin);
}

void Sampler::append_text(int64_t i, std::string& utf8) const {
  utf8 += start_.prefix;
  const std::u32string_view tokens = std::u32string_view(texts_[i].tokens).substr(context_length_);
  if (symbols_.size() == vocab_size_) {
    // One byte for each token.
    const size_t begin = utf8.size();
    utf8.resize(begin + tokens.size());
    std::transform(tokens.begin(), tokens.end(), utf8.begin() + static_cast<std::ptrdiff_t>(begin),
                   [&](char32_t token) { return symbols_[token]; });
  } else {
    for (const char32_t token : tokens) append_symbol(token, utf8);
  }
}

}  // namespace charlm::text
