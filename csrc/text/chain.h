// The model's distribution over texts, given that an automaton accepts them and that their length is in a range.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "automaton.h"

namespace charlm::text {

// A node is a context of the model together with a state of the automaton; from the start nodes all are explored that
// a text can reach. The caller supplies the tables of the contexts met on the way. With p the model's probabilities,
//
//   h_l(node) = [l >= min and the state accepts] p(end | context) + sum_v p(v | context) h_{l+1}(node after v)
//
// is the probability that a text of l tokens goes on to one that is wanted, up to max tokens; without a maximum h is
// the same for all l >= min, the least solution of the equation. A token is drawn with probability p h / sum of p h, so
// that a text comes with the model's probability of it given that it is wanted.
class Chain {
 public:
  // Of at most max_entries / vocab_size nodes.
  Chain(size_t vocab_size, size_t context_length, size_t max_entries);

  // Forgets what was explored. std::invalid_argument unless 0 <= end < V and the automaton has V tokens.
  void reset(Automaton automaton, int32_t end);
  // Texts start here. std::invalid_argument if a number is out of range.
  void open(std::span<const int32_t> context, uint32_t state);
  // Explores as far as tables are known; the contexts (M, T) without one. None: all is explored, or it is too large.
  std::span<const int32_t> explore();
  // As Sampler::add.
  void add(std::span<const double> weights);

  // Computes h. Whether it could: not where there are too many nodes, or lengths, or where h does not settle. max < 0
  // is no maximum. std::invalid_argument if min < 0 or there is something to explore.
  bool solve(int64_t min_length, int64_t max_length);

  // h of texts of `length` tokens; 0 where that is no node.
  double acceptance(std::span<const int32_t> context, uint32_t state, int64_t length) const;

  struct Step {
    uint32_t token;
    uint32_t node;
  };
  // The number of a start node; only after `solve`.
  uint32_t node(std::span<const int32_t> context, uint32_t state) const;
  // The token after a text of `length` tokens, `end` or not, by 64 random bits. h must not be 0.
  Step draw(uint32_t node, int64_t length, uint64_t bits) const;

  const Automaton& automaton() const { return automaton_; }
  uint32_t end() const { return end_; }
  bool is_solved() const { return is_solved_; }

 private:
  struct Edge {
    double probability;
    uint32_t token;
    uint32_t node;
  };
  struct Node {
    uint32_t context;
    uint32_t state;
    size_t first_edge;  // where those of the node before end
    double end;         // probability of an end that is wanted, whatever the length
  };

  std::span<const int32_t> context(uint32_t number) const;
  uint32_t context_number(std::u32string_view tokens);
  uint32_t node_number(uint32_t context, uint32_t state);
  bool find(std::span<const int32_t> context, uint32_t state, uint32_t& node) const;
  bool settle(std::span<double> values) const;
  std::span<const Edge> edges(uint32_t node) const;
  std::span<const double> values(int64_t length) const;
  double value(uint32_t node, bool may_end, std::span<const double> next) const;

  size_t vocab_size_;
  size_t context_length_;
  size_t max_nodes_;
  Automaton automaton_;
  uint32_t end_ = 0;
  bool is_too_large_ = false;
  bool is_solved_ = false;

  std::unordered_map<std::u32string, uint32_t> context_of_;
  std::vector<int32_t> contexts_;  // (contexts, T)
  size_t filled_ = 0;              // contexts 0 .. filled_ - 1 have weights
  std::vector<double> weights_;    // (filled_, V), each row with sum 1

  std::unordered_map<uint64_t, uint32_t> node_of_;
  std::vector<Node> nodes_;
  size_t explored_ = 0;  // nodes 0 .. explored_ - 1 have edges
  std::vector<Edge> edges_;
  std::vector<double> values_;  // (lengths 0 .. cap_, nodes): h
  int64_t min_length_ = 0;
  int64_t cap_ = 0;  // h is the same for all lengths from here on, or nothing is longer
  bool has_maximum_ = false;
};

}  // namespace charlm::text
