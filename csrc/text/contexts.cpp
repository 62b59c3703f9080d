#include "contexts.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace charlm::text {
namespace {

// Contexts by their tokens, numbered in order of insertion. Open addressing with linear probing, at most half full. A
// bucket keeps a 64-bit key: the tokens themselves where they fit, which settles every comparison, and otherwise their
// hash.
template <typename Token>
class ContextTable {
 public:
  ContextTable(std::span<const Token> tokens, int64_t context_length)
      : tokens_(tokens), context_length_(context_length), tokens_fit_(context_length * sizeof(Token) <= 8) {}

  // The number of the context that starts at tokens[start].
  int64_t number(int64_t start) {
    const uint64_t key = key_of(start);
    size_t i = first_bucket(key);
    for (; buckets_[i].number >= 0; i = (i + 1) & (buckets_.size() - 1)) {
      if (buckets_[i].key == key && (tokens_fit_ || equal(start, starts_[buckets_[i].number])))
        return buckets_[i].number;
    }
    const auto number = static_cast<int64_t>(starts_.size());
    buckets_[i] = {key, number};
    starts_.push_back(start);
    if (2 * starts_.size() > buckets_.size()) grow();
    return number;
  }

  std::vector<int64_t>& starts() { return starts_; }

 private:
  struct Bucket {
    uint64_t key = 0;
    int64_t number = -1;
  };

  static constexpr uint64_t kGoldenRatio = 0x9E3779B97F4A7C15;  // of 2^64: Knuth's multiplicative hashing

  uint64_t key_of(int64_t start) const {
    using Bits = std::make_unsigned_t<Token>;
    const Token* context = tokens_.data() + start;
    uint64_t key = 0;
    if (tokens_fit_) {
      for (int64_t t = 0; t < context_length_; ++t) key = key << (8 * sizeof(Token)) | static_cast<Bits>(context[t]);
    } else {
      for (int64_t t = 0; t < context_length_; ++t) {
        key = (key ^ static_cast<Bits>(context[t])) * kGoldenRatio;
        key ^= key >> 32;
      }
    }
    return key;
  }

  size_t first_bucket(uint64_t key) const { return (key * kGoldenRatio) >> (64 - bucket_bits_); }

  bool equal(int64_t a, int64_t b) const {
    return std::equal(tokens_.data() + a, tokens_.data() + a + context_length_, tokens_.data() + b);
  }

  void grow() {
    std::vector<Bucket> old(2 * buckets_.size());
    old.swap(buckets_);
    ++bucket_bits_;
    for (const Bucket& bucket : old) {
      if (bucket.number < 0) continue;
      size_t i = first_bucket(bucket.key);
      while (buckets_[i].number >= 0) i = (i + 1) & (buckets_.size() - 1);
      buckets_[i] = bucket;
    }
  }

  std::span<const Token> tokens_;
  int64_t context_length_;
  bool tokens_fit_;
  int bucket_bits_ = 10;
  std::vector<Bucket> buckets_ = std::vector<Bucket>(size_t{1} << bucket_bits_);
  std::vector<int64_t> starts_;
};

// Calls visit(i, start) for the examples 0, step, 2 step, ..., in order; i counts them.
template <typename Index, typename Visit>
void for_each_example(std::span<const Index> ends, int64_t context_length, int64_t step, Visit visit) {
  int64_t example = 0, i = 0;
  for (size_t line = 0; line < ends.size(); ++line) {
    const int64_t shift = static_cast<int64_t>(line) * (context_length - 1);
    for (; example < ends[line]; example += step) visit(i++, example + shift);
  }
}

// How often each pair of a context and a target occurs: open addressing with linear probing, at most half full.
class PairCounts {
 public:
  // Pairs are numbers below 2^64 - 1.
  void add(uint64_t pair) {
    size_t i = bucket(pair);
    while (buckets_[i].count != 0 && buckets_[i].pair != pair) i = (i + 1) & (buckets_.size() - 1);
    buckets_[i].pair = pair;
    if (buckets_[i].count++ == 0 && 2 * ++size_ > buckets_.size()) grow();
  }

  // The pairs with their counts, ascending.
  std::vector<std::pair<uint64_t, int64_t>> sorted() {
    std::vector<std::pair<uint64_t, int64_t>> pairs;
    pairs.reserve(size_);
    for (const Bucket& bucket : buckets_) {
      if (bucket.count > 0) pairs.emplace_back(bucket.pair, bucket.count);
    }
    buckets_ = {};
    std::sort(pairs.begin(), pairs.end());
    return pairs;
  }

 private:
  struct Bucket {
    uint64_t pair = 0;
    int64_t count = 0;
  };

  size_t bucket(uint64_t pair) const { return (pair * 0x9E3779B97F4A7C15) >> (64 - bits_); }

  void grow() {
    std::vector<Bucket> old(2 * buckets_.size());
    old.swap(buckets_);
    ++bits_;
    for (const Bucket& moved : old) {
      if (moved.count == 0) continue;
      size_t i = bucket(moved.pair);
      while (buckets_[i].count != 0) i = (i + 1) & (buckets_.size() - 1);
      buckets_[i] = moved;
    }
  }

  int bits_ = 10;
  size_t size_ = 0;
  std::vector<Bucket> buckets_ = std::vector<Bucket>(size_t{1} << bits_);
};

// Fills targets and counts from the targets of all examples, ordered by context (those of context u at row_ptr[u] to
// row_ptr[u + 1]), and makes row_ptr point into them.
template <typename Token>
void count_targets(const std::vector<Token>& ordered, DistinctContexts<Token>& distinct) {
  std::vector<int64_t> counts;  // (V,) of the context at hand
  std::vector<Token> present;
  for (size_t u = 0; u + 1 < distinct.row_ptr.size(); ++u) {
    const int64_t begin = distinct.row_ptr[u];
    const int64_t end = distinct.row_ptr[u + 1];
    distinct.row_ptr[u] = static_cast<int64_t>(distinct.targets.size());
    present.clear();
    for (int64_t i = begin; i < end; ++i) {
      const auto target = static_cast<size_t>(ordered[i]);
      if (target >= counts.size()) counts.resize(target + 1);
      if (counts[target]++ == 0) present.push_back(ordered[i]);
    }
    std::sort(present.begin(), present.end());
    for (const Token target : present) {
      distinct.targets.push_back(target);
      distinct.counts.push_back(counts[static_cast<size_t>(target)]);
      counts[static_cast<size_t>(target)] = 0;
    }
  }
  distinct.row_ptr.back() = static_cast<int64_t>(distinct.targets.size());
}

}  // namespace

template <typename Token, typename Index>
DistinctContexts<Token> find_distinct_contexts(std::span<const Token> tokens, std::span<const Index> ends,
                                               int64_t context_length, int64_t step, std::span<Index> index) {
  DistinctContexts<Token> distinct;
  ContextTable<Token> table(tokens, context_length);
  for_each_example(ends, context_length, step,
                   [&](int64_t i, int64_t start) { index[i] = static_cast<Index>(table.number(start)); });
  distinct.starts = std::move(table.starts());

  // Counting sort of the targets by context.
  distinct.row_ptr.assign(distinct.starts.size() + 1, 0);
  for (const Index number : index) ++distinct.row_ptr[static_cast<size_t>(number) + 1];
  for (size_t u = 1; u < distinct.row_ptr.size(); ++u) distinct.row_ptr[u] += distinct.row_ptr[u - 1];
  std::vector<int64_t> next(distinct.row_ptr.begin(), distinct.row_ptr.end() - 1);
  std::vector<Token> ordered(index.size());
  for_each_example(ends, context_length, step,
                   [&](int64_t i, int64_t start) { ordered[next[index[i]]++] = tokens[start + context_length]; });
  count_targets(ordered, distinct);
  return distinct;
}

template <typename Token, typename Index>
DistinctContexts<Token> count_distinct_contexts(std::span<const Token> tokens, std::span<const Index> ends,
                                                int64_t context_length, int64_t vocab_size, int64_t step) {
  DistinctContexts<Token> distinct;
  ContextTable<Token> table(tokens, context_length);
  PairCounts pairs;
  const auto size = static_cast<uint64_t>(vocab_size);
  for_each_example(ends, context_length, step, [&](int64_t, int64_t start) {
    const auto context = static_cast<uint64_t>(table.number(start));
    if (context >= std::numeric_limits<uint64_t>::max() / size) throw std::length_error("too many distinct contexts");
    pairs.add(context * size + static_cast<uint64_t>(tokens[start + context_length]));
  });
  distinct.starts = std::move(table.starts());
  distinct.row_ptr.assign(distinct.starts.size() + 1, 0);
  for (const auto& [pair, count] : pairs.sorted()) {
    ++distinct.row_ptr[pair / size + 1];
    distinct.targets.push_back(static_cast<Token>(pair % size));
    distinct.counts.push_back(count);
  }
  for (size_t u = 1; u < distinct.row_ptr.size(); ++u) distinct.row_ptr[u] += distinct.row_ptr[u - 1];
  return distinct;
}

template <typename Token, typename Index>
void check_examples(std::span<const Token> tokens, std::span<const Index> ends, int64_t context_length,
                    int64_t vocab_size, int64_t step) {
  const auto refuse = [](std::string message) { throw std::out_of_range(std::move(message)); };
  const auto size = static_cast<int64_t>(tokens.size()), lines = static_cast<int64_t>(ends.size());
  if (step < 1) refuse("step must be positive, got " + std::to_string(step));
  if (context_length < 1 || context_length > size) {
    refuse("context_length must be from 1 to the number of tokens, " + std::to_string(size) + ", got " +
           std::to_string(context_length));
  }
  for (int64_t i = 0; i < lines; ++i) {
    const int64_t before = i > 0 ? ends[i - 1] : 0;
    if (ends[i] < before) {
      refuse("ends must rise from 0 to the number of examples, got ends[" + std::to_string(i) +
             "] = " + std::to_string(ends[i]) + " after " + std::to_string(before));
    }
  }
  // An example is one of the tokens, which bounds both terms.
  const int64_t examples = lines > 0 ? ends[lines - 1] : 0, others = context_length - 1;
  const bool fits = examples < size && (others == 0 || lines <= size / others) &&
                    (examples == 0 || examples - 1 + (lines - 1) * others + context_length < size);
  if (!fits) {
    refuse("the examples lie outside the tokens: " + std::to_string(examples) + " examples of " +
           std::to_string(lines) + " lines, " + std::to_string(size) + " tokens");
  }
  const auto check = [&](auto begin, auto end) {
    const auto bad = std::find_if(begin, end, [&](int64_t token) { return token < 0 || token >= vocab_size; });
    if (bad == end) return;
    refuse("tokens[" + std::to_string(bad - tokens.begin()) + "] = " + std::to_string(*bad) +
           " is out of range for a vocabulary of " + std::to_string(vocab_size) + " tokens");
  };
  if (step == 1) {
    check(tokens.begin(), tokens.end());
  } else {
    for_each_example(ends, context_length, step, [&](int64_t, int64_t start) {
      check(tokens.begin() + start, tokens.begin() + start + context_length + 1);
    });
  }
}

#define CHARLM_INSTANTIATE(Token, Index)                                                                            \
  template DistinctContexts<Token> count_distinct_contexts(std::span<const Token>, std::span<const Index>, int64_t, \
                                                           int64_t, int64_t);                                       \
  template void check_examples(std::span<const Token>, std::span<const Index>, int64_t, int64_t, int64_t);          \
  template DistinctContexts<Token> find_distinct_contexts(std::span<const Token>, std::span<const Index>, int64_t,  \
                                                          int64_t, std::span<Index>);
CHARLM_INSTANTIATE(uint8_t, int32_t)
CHARLM_INSTANTIATE(uint8_t, int64_t)
CHARLM_INSTANTIATE(int16_t, int32_t)
CHARLM_INSTANTIATE(int16_t, int64_t)
CHARLM_INSTANTIATE(int32_t, int32_t)
CHARLM_INSTANTIATE(int32_t, int64_t)
#undef CHARLM_INSTANTIATE

}  // namespace charlm::text
