#include "chain.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

namespace charlm::text {
namespace {

// Bounds what `solve` keeps, 128 MiB, and does: some seconds.
constexpr size_t kMaxValues = size_t{1} << 24;
constexpr uint64_t kMaxWork = uint64_t{1} << 31;
// h has settled where it changes by less.
constexpr double kSettled = 0x1p-51;

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

uint64_t key(uint32_t context, uint32_t state) { return uint64_t{context} << 32 | state; }

std::u32string to_tokens(std::span<const int32_t> context) { return {context.begin(), context.end()}; }

}  // namespace

Chain::Chain(size_t vocab_size, size_t context_length, size_t max_entries)
    : vocab_size_(vocab_size),
      context_length_(context_length),
      max_nodes_(std::max<size_t>(1, max_entries / vocab_size)),
      automaton_(vocab_size) {}

void Chain::reset(Automaton automaton, int32_t end) {
  require(automaton.vocab_size() == vocab_size_, "classes must have one number per character");
  require(end >= 0 && static_cast<size_t>(end) < vocab_size_, "end must be a token");
  automaton_ = std::move(automaton);
  end_ = static_cast<uint32_t>(end);
  is_too_large_ = is_solved_ = false;
  context_of_.clear();
  contexts_.clear();
  filled_ = 0;
  weights_.clear();
  node_of_.clear();
  nodes_.clear();
  explored_ = 0;
  edges_.clear();
  values_.clear();
}

void Chain::open(std::span<const int32_t> context, uint32_t state) {
  require(context.size() == context_length_, "context must have context_length tokens");
  for (const int32_t token : context) {
    require(token >= 0 && static_cast<size_t>(token) < vocab_size_, "context has a token out of range");
  }
  require(state < automaton_.states(), "state is out of range");
  is_solved_ = false;
  if (state != 0) node_number(context_number(to_tokens(context)), state);
}

std::span<const int32_t> Chain::explore() {
  std::u32string next;
  for (; explored_ < nodes_.size() && !is_too_large_; ++explored_) {
    Node& node = nodes_[explored_];
    if (node.context >= filled_) return std::span<const int32_t>(contexts_).subspan(filled_ * context_length_);
    const uint32_t state = node.state;
    const std::span<const double> weights(weights_.data() + node.context * vocab_size_, vocab_size_);
    node.first_edge = edges_.size();
    node.end = automaton_.accepts(state) ? weights[end_] : 0.0;
    const std::span<const int32_t> tokens = context(node.context);
    next.assign(tokens.begin() + 1, tokens.end());
    next.push_back(0);
    for (uint32_t token = 0; token < vocab_size_; ++token) {
      if (token == end_ || weights[token] == 0.0) continue;
      const uint32_t next_state = automaton_.step(state, token);
      if (next_state == 0) continue;
      next.back() = token;
      // nodes_ may move.
      edges_.push_back({weights[token], token, node_number(context_number(next), next_state)});
    }
  }
  return {};
}

void Chain::add(std::span<const double> weights) {
  require(weights.size() % vocab_size_ == 0, "weights must have one number per character and context");
  require(weights.size() / vocab_size_ <= contexts_.size() / context_length_ - filled_,
          "weights must not be of more contexts than miss them");
  for (; !weights.empty(); weights = weights.subspan(vocab_size_)) {
    double sum = 0.0;
    for (const double weight : weights.first(vocab_size_)) {
      require(weight >= 0.0, "weights must not be negative or NaN");
      sum += weight;
    }
    require(sum > 0.0 && std::isfinite(sum), "the weights of a context must have a positive, finite sum");
    for (const double weight : weights.first(vocab_size_)) weights_.push_back(weight / sum);
    ++filled_;
  }
}

bool Chain::solve(int64_t min_length, int64_t max_length) {
  require(min_length >= 0, "min_length must not be negative");
  require(is_too_large_ || explored_ == nodes_.size(), "there are contexts to explore");
  has_maximum_ = max_length >= 0;
  min_length_ = min_length;
  cap_ = has_maximum_ ? max_length : min_length;
  const auto levels = static_cast<uint64_t>(cap_) + 1;
  is_solved_ = false;
  if (is_too_large_ || levels > kMaxValues / std::max<size_t>(1, nodes_.size()) ||
      levels > kMaxWork / std::max<size_t>(1, edges_.size())) {
    return false;
  }
  values_.assign(levels * nodes_.size(), 0.0);
  const auto level = [&](int64_t length) {
    return std::span(values_).subspan(static_cast<size_t>(length) * nodes_.size(), nodes_.size());
  };
  const std::span<double> last = level(cap_);
  if (has_maximum_) {
    for (size_t n = 0; n < nodes_.size(); ++n) last[n] = cap_ >= min_length_ ? nodes_[n].end : 0.0;
  } else if (!settle(last)) {
    return false;
  }
  for (int64_t length = cap_ - 1; length >= 0; --length) {
    const std::span<double> now = level(length);
    const std::span<const double> next = level(length + 1);
    for (size_t n = 0; n < nodes_.size(); ++n) {
      now[n] = value(static_cast<uint32_t>(n), length >= min_length_, next);
    }
  }
  is_solved_ = true;
  return true;
}

// The least solution of h = end + P h: sweeps from 0 never fall, and stay below it.
bool Chain::settle(std::span<double> values) const {
  const uint64_t sweeps = kMaxWork / std::max<size_t>(1, edges_.size());
  for (uint64_t sweep = 0; sweep < sweeps; ++sweep) {
    bool is_settled = true;
    for (size_t n = values.size(); n-- > 0;) {
      const double now = value(static_cast<uint32_t>(n), true, values);
      is_settled = is_settled && now - values[n] <= kSettled * now;
      values[n] = now;
    }
    if (is_settled) return true;
  }
  return false;
}

double Chain::value(uint32_t node, bool may_end, std::span<const double> next) const {
  double sum = may_end ? nodes_[node].end : 0.0;
  for (const Edge& edge : edges(node)) sum += edge.probability * next[edge.node];
  return sum;
}

std::span<const Chain::Edge> Chain::edges(uint32_t node) const {
  const size_t end = node + 1 < nodes_.size() ? nodes_[node + 1].first_edge : edges_.size();
  return std::span(edges_).subspan(nodes_[node].first_edge, end - nodes_[node].first_edge);
}

std::span<const double> Chain::values(int64_t length) const {
  return std::span(values_).subspan(static_cast<size_t>(std::min(length, cap_)) * nodes_.size(), nodes_.size());
}

double Chain::acceptance(std::span<const int32_t> context, uint32_t state, int64_t length) const {
  require(is_solved_, "the chain is not solved");
  require(length >= 0, "length must not be negative");
  uint32_t number = 0;
  if (!find(context, state, number) || (has_maximum_ && length > cap_)) return 0.0;
  return values(length)[number];
}

uint32_t Chain::node(std::span<const int32_t> context, uint32_t state) const {
  uint32_t number = 0;
  require(find(context, state, number), "texts do not start there");
  return number;
}

Chain::Step Chain::draw(uint32_t node, int64_t length, uint64_t bits) const {
  double sum = length >= min_length_ ? nodes_[node].end : 0.0;
  const Step end = {end_, node};
  if (has_maximum_ && length >= cap_) return end;
  // 53 bits of a number in [0, 1), times the sum that the loop below comes to.
  const double place = static_cast<double>(bits >> 11) * 0x1p-53 * values(length)[node];
  if (place < sum) return end;
  Step last = end;
  const std::span<const double> next = values(length + 1);
  for (const Edge& edge : edges(node)) {
    const double share = edge.probability * next[edge.node];
    if (share == 0.0) continue;
    sum += share;
    last = {edge.token, edge.node};
    if (place < sum) break;
  }
  return last;
}

std::span<const int32_t> Chain::context(uint32_t number) const {
  return std::span<const int32_t>(contexts_).subspan(number * context_length_, context_length_);
}

uint32_t Chain::context_number(std::u32string_view tokens) {
  const auto [entry, is_new] = context_of_.try_emplace(std::u32string(tokens), 0);
  if (is_new) {
    entry->second = static_cast<uint32_t>(contexts_.size() / context_length_);
    contexts_.insert(contexts_.end(), tokens.begin(), tokens.end());
  }
  return entry->second;
}

uint32_t Chain::node_number(uint32_t context, uint32_t state) {
  const auto [entry, is_new] = node_of_.try_emplace(key(context, state), static_cast<uint32_t>(nodes_.size()));
  if (is_new) {
    nodes_.push_back({context, state, 0, 0.0});
    is_too_large_ = is_too_large_ || nodes_.size() > max_nodes_;
  }
  return entry->second;
}

bool Chain::find(std::span<const int32_t> context, uint32_t state, uint32_t& node) const {
  const auto context_entry = context_of_.find(to_tokens(context));
  if (context_entry == context_of_.end()) return false;
  const auto entry = node_of_.find(key(context_entry->second, state));
  if (entry == node_of_.end()) return false;
  node = entry->second;
  return true;
}

}  // namespace charlm::text
