// A set of texts in UTF-8, for millions of short ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace charlm::text {

class TextSet {
 public:
  bool empty() const { return size_ == 0; }
  bool contains(std::string_view text) const;

  // Whether it was not there.
  bool insert(std::string_view text);

 private:
  // Open addressing; at least half of the slots are free. A slot has the place of a text in bytes_, plus 1, and above
  // it as many bits of its hash as there is room for; 0 is free.
  static constexpr uint64_t kPlace = (uint64_t{1} << 40) - 1;

  size_t find(std::string_view text, uint64_t hash) const;
  std::string_view text_at(uint64_t slot) const;
  void grow();

  std::vector<uint64_t> slots_;
  std::string bytes_;  // of each text its length, 4 bytes, and itself
  size_t size_ = 0;
};

}  // namespace charlm::text
