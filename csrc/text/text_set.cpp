#include "text_set.h"

#include <cstring>
#include <functional>
#include <stdexcept>

namespace charlm::text {
namespace {

constexpr size_t kFirstSlots = 64;

}  // namespace

bool TextSet::contains(std::string_view text) const {
  if (size_ == 0) return false;
  return slots_[find(text, std::hash<std::string_view>{}(text))] != 0;
}

bool TextSet::insert(std::string_view text) {
  if (2 * (size_ + 1) > slots_.size()) grow();
  const uint64_t hash = std::hash<std::string_view>{}(text);
  uint64_t& slot = slots_[find(text, hash)];
  if (slot != 0) return false;
  const uint64_t place = bytes_.size() + 1;
  const auto length = static_cast<uint32_t>(text.size());
  if (place > kPlace || length != text.size()) throw std::length_error("too many texts to keep");
  bytes_.append(reinterpret_cast<const char*>(&length), sizeof(length));
  bytes_.append(text);
  slot = (hash & ~kPlace) | place;
  ++size_;
  return true;
}

// The slot that has the text, or the free one where it belongs.
size_t TextSet::find(std::string_view text, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t i = hash & mask;
  while (slots_[i] != 0 && !((slots_[i] & ~kPlace) == (hash & ~kPlace) && text_at(slots_[i]) == text)) {
    i = (i + 1) & mask;
  }
  return i;
}

std::string_view TextSet::text_at(uint64_t slot) const {
  const char* const place = bytes_.data() + (slot & kPlace) - 1;
  uint32_t length = 0;
  std::memcpy(&length, place, sizeof(length));
  return {place + sizeof(length), length};
}

void TextSet::grow() {
  std::vector<uint64_t> old(slots_.empty() ? kFirstSlots : 2 * slots_.size());
  old.swap(slots_);
  const size_t mask = slots_.size() - 1;
  for (const uint64_t slot : old) {
    if (slot == 0) continue;
    size_t i = std::hash<std::string_view>{}(text_at(slot)) & mask;
    while (slots_[i] != 0) i = (i + 1) & mask;
    slots_[i] = slot;
  }
}

}  // namespace charlm::text
