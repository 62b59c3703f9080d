// A deterministic finite automaton over tokens: which texts are wanted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

namespace charlm::text {

// Tokens that it treats alike are one class. From state 0 no text is accepted any more, and it leads to itself alone.
class Automaton {
 public:
  // Accepts every text: states 0 and 1, from which it starts.
  explicit Automaton(size_t vocab_size) : classes_(vocab_size, 0), next_{0, 1}, accepting_{0, 1} {}

  // `classes` (V,) of the tokens, the `next` state (D, K) for each state and class, whether each state is `accepting`
  // (D,). std::invalid_argument if a number is out of range or state 0 is not as above.
  Automaton(std::vector<uint32_t> classes, std::vector<uint32_t> next, std::vector<uint8_t> accepting)
      : classes_(std::move(classes)), next_(std::move(next)), accepting_(std::move(accepting)) {
    const auto require = [](bool holds, const char* message) {
      if (!holds) throw std::invalid_argument(message);
    };
    require(accepting_.size() >= 2, "an automaton must have at least 2 states");
    require(!next_.empty() && next_.size() % accepting_.size() == 0, "next must have shape (states, classes)");
    width_ = next_.size() / accepting_.size();
    for (const uint32_t c : classes_) require(c < width_, "classes has one that is out of range");
    for (const uint32_t state : next_) require(state < accepting_.size(), "next has a state that is out of range");
    for (size_t c = 0; c < width_; ++c) require(next_[c] == 0, "state 0 must lead to itself");
    require(accepting_[0] == 0, "state 0 must not be accepting");
  }

  size_t states() const { return accepting_.size(); }
  size_t vocab_size() const { return classes_.size(); }
  uint32_t step(uint32_t state, uint32_t token) const { return next_[state * width_ + classes_[token]]; }
  bool accepts(uint32_t state) const { return accepting_[state] != 0; }

 private:
  std::vector<uint32_t> classes_;
  std::vector<uint32_t> next_;
  std::vector<uint8_t> accepting_;
  size_t width_ = 1;
};

}  // namespace charlm::text
