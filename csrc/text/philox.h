// Random numbers that are a function of their place, not of what was drawn before.
#pragma once

#include <array>
#include <cstdint>

namespace charlm::text {

// Philox4x32-10 of Salmon, Moraes, Dror, Shaw 2011, "Parallel Random Numbers: As Easy as 1, 2, 3": four random words
// for each counter and key, here the counter (high, low) of 128 bits and the 64-bit key.
inline std::array<uint32_t, 4> philox(uint64_t key, uint64_t high, uint64_t low) {
  std::array<uint32_t, 4> words = {static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32),
                                   static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)};
  auto key0 = static_cast<uint32_t>(key);
  auto key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * words[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * words[2];
    words = {static_cast<uint32_t>(product1 >> 32) ^ words[1] ^ key0, static_cast<uint32_t>(product1),
             static_cast<uint32_t>(product0 >> 32) ^ words[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return words;
}

}  // namespace charlm::text
