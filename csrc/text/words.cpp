#include "words.h"

#include <cstring>

namespace charlm::text {

int64_t WordTable::insert(std::string_view word) {
  const uint64_t key = hash(word);
  Bucket& found = buckets_[bucket(word, key)];
  if (found.number >= 0) return found.number;
  const int64_t number = size();
  characters_.append(word);
  starts_.push_back(characters_.size());
  found = {key, number};
  if (2 * starts_.size() > buckets_.size()) grow();
  return number;
}

// Eight bytes at a time, each mixed in by a multiplication whose upper half is folded onto the lower.
uint64_t WordTable::hash(std::string_view word) {
  constexpr uint64_t kGoldenRatio = 0x9E3779B97F4A7C15;  // of 2^64
  uint64_t hash = word.size() * kGoldenRatio;
  for (size_t i = 0; i < word.size(); i += 8) {
    uint64_t bytes = 0;
    std::memcpy(&bytes, word.data() + i, word.size() - i < 8 ? word.size() - i : 8);
    hash = (hash ^ bytes) * kGoldenRatio;
    hash ^= hash >> 32;
  }
  return hash * kGoldenRatio;
}

void WordTable::grow() {
  std::vector<Bucket> old(2 * buckets_.size());
  old.swap(buckets_);
  ++bits_;
  for (const Bucket& moved : old) {
    if (moved.number < 0) continue;
    size_t i = moved.hash >> (64 - bits_);
    while (buckets_[i].number >= 0) i = (i + 1) & (buckets_.size() - 1);
    buckets_[i] = moved;
  }
}

}  // namespace charlm::text
