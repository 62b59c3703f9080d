#include "sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "philox.h"

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
    : characters_(std::move(characters)),
      context_length_(static_cast<size_t>(context_length)),
      max_contexts_(static_cast<size_t>(max_contexts)) {
  require(!characters_.empty(), "characters must not be empty");
  require(context_length >= 1, "context_length must be at least 1");
  require(max_contexts >= 1, "max_contexts must be at least 1");
  require(max_contexts_ <= std::numeric_limits<int32_t>::max() / characters_.size(),
          "max_contexts times the number of characters must be less than 2^31");
}

void Sampler::start(std::span<const int32_t> context, uint64_t seed, int64_t first, int64_t count, int64_t max_tokens,
                    int32_t end) {
  const auto vocab_size = static_cast<int64_t>(characters_.size());
  require(context.size() == context_length_, "context must have context_length tokens");
  for (const int32_t token : context) require(token >= 0 && token < vocab_size, "context has a token out of range");
  require(end >= -1 && end < vocab_size, "end must be a token or -1");
  require(first >= 0 && max_tokens >= 0, "first and max_tokens must not be negative");
  require(count >= 0 && count < std::numeric_limits<uint32_t>::max(), "count must be from 0 to 2^32 - 2");

  unfinished_.clear();
  count_ = count;
  if (texts_.size() < static_cast<size_t>(count)) texts_.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    texts_[i].tokens.assign(context.begin(), context.end());
    texts_[i].table = kUnknown;
    if (max_tokens > 0) unfinished_.push_back(static_cast<uint32_t>(i));
  }
  seed_ = seed;
  first_ = static_cast<uint64_t>(first);
  full_size_ = context_length_ + static_cast<size_t>(max_tokens);
  end_ = static_cast<uint32_t>(end);
}

std::span<const int32_t> Sampler::advance() {
  int64_t budget = kTokensPerCall;
  size_t kept = 0;
  for (const uint32_t i : unfinished_) {
    if (!draw(first_ + i, texts_[i], budget)) unfinished_[kept++] = i;
  }
  unfinished_.resize(kept);
  if (budget > 0 && kept > 0 && filled_ == tables_.size()) {
    // Nobody could go on, and no table is missing: all need one beyond the limit.
    forget_tables();
    for (const uint32_t i : unfinished_) texts_[i].table = table_after(texts_[i]);
  }
  return std::span<const int32_t>(missing_).last((tables_.size() - filled_) * context_length_);
}

// Returns whether the text has ended; otherwise it waits for a table, or the budget is spent.
bool Sampler::draw(uint64_t number, Text& text, int64_t& budget) {
  const size_t size_before = text.tokens.size();
  const size_t stop = std::min(full_size_, size_before + static_cast<size_t>(budget));
  std::array<uint32_t, 4> words = {};
  bool ended = false;
  for (size_t size = size_before; size < stop; ++size) {
    if (text.table == kUnknown) text.table = table_after(text);
    if (text.table == kUnknown || tables_[text.table].size == 0) break;
    const Table table = tables_[text.table];

    const size_t position = size - context_length_;
    if (position % 2 == 0 || size == size_before) words = philox(seed_, number, position / 2);
    const uint64_t high = words[position % 2 * 2];
    const uint64_t low = words[position % 2 * 2 + 1];
    // The 64 random bits times the number of columns: the whole part, and 32 bits of the fraction.
    const uint64_t product = high * table.size + (low * table.size >> 32);
    Column* const columns = columns_.data() + table.begin;
    Column* column = columns + (product >> 32);
    if (static_cast<uint32_t>(product) >= column->threshold) column = columns + column->alias;

    if (column->token == end_) {
      ended = true;
      break;
    }
    text.tokens.push_back(column->token);
    text.table = column->next;
    if (text.table == kUnknown && size + 1 < full_size_) column->next = text.table = table_after(text);
  }
  budget -= static_cast<int64_t>(text.tokens.size() - size_before);
  return ended || text.tokens.size() == full_size_;
}

// The number of the table of a text's context, which may be missing as yet; kUnknown if the limit is reached.
uint32_t Sampler::table_after(const Text& text) {
  const std::u32string_view context = std::u32string_view(text.tokens).substr(text.tokens.size() - context_length_);
  if (const auto known = table_of_.find(context); known != table_of_.end()) return known->second;
  if (tables_.size() == max_contexts_) return kUnknown;
  const auto number = static_cast<uint32_t>(tables_.size());
  tables_.emplace_back();
  missing_.insert(missing_.end(), context.begin(), context.end());
  table_of_.emplace(context, number);
  return number;
}

void Sampler::add(std::span<const double> weights) {
  const size_t vocab_size = characters_.size();
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
    if (weights[i] > 0.0) columns_.push_back({0, 0, static_cast<uint32_t>(i), kUnknown});
  }
  const auto columns = std::span(columns_).subspan(begin);
  const uint64_t total = columns.size() * kMeanShare;

  shares_.clear();
  uint64_t given = 0;
  for (const Column& column : columns) {
    shares_.push_back(static_cast<uint64_t>(weights[column.token] / sum * static_cast<double>(total)));
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
    columns[column].alias = other;
    shares_[other] -= kMeanShare - shares_[column];
    if (shares_[other] < kMeanShare) {
      others_.pop_back();
      below_.push_back(other);
    }
  }
  for (const uint32_t column : others_) columns[column].alias = column;
  tables_[filled_] = {static_cast<uint32_t>(begin), static_cast<uint32_t>(columns.size())};
}

void Sampler::forget_tables() {
  table_of_.clear();
  tables_.clear();
  columns_.clear();
  missing_.clear();
  filled_ = 0;
}

void Sampler::append_text(int64_t i, std::u32string& text) const {
  for (const char32_t token : std::u32string_view(texts_[i].tokens).substr(context_length_)) {
    text.push_back(characters_[token]);
  }
}

}  // namespace charlm::text
