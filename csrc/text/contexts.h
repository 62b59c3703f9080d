// Each context once: which examples share one, and how often each target follows it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace charlm::text {

// Contexts are numbered 0 .. U-1 by first appearance.
template <typename Token>
struct DistinctContexts {
  std::vector<int64_t> starts;   // (U,)    where in the tokens context u first stands
  std::vector<int64_t> row_ptr;  // (U+1,)  targets and counts of context u: entries row_ptr[u] to row_ptr[u + 1]
  std::vector<Token> targets;    // (nnz,)  ascending within a context
  std::vector<int64_t> counts;   // (nnz,)  how many examples have this context and this target
};

// Example j, in the line k with ends[k - 1] <= j < ends[k], has its context at tokens[j + k * (context_length - 1)] and
// the context_length - 1 following, and the token after these as its target. `index` (N,), N = ends.back(), becomes the
// number of each example's context. Token is uint8_t, int16_t or int32_t, Index is int32_t or int64_t.
// Only the examples 0, `step`, 2 `step`, ... are looked at, and N is their number. All of it has passed check_examples.
template <typename Token, typename Index>
DistinctContexts<Token> find_distinct_contexts(std::span<const Token> tokens, std::span<const Index> ends,
                                               int64_t context_length, int64_t step, std::span<Index> index);

// The same without the index, in memory that does not grow with the number of examples.
template <typename Token, typename Index>
DistinctContexts<Token> count_distinct_contexts(std::span<const Token> tokens, std::span<const Index> ends,
                                                int64_t context_length, int64_t vocab_size, int64_t step);

// std::out_of_range if `step` is not positive, if `ends` do not rise from at least 0, if an example lies outside the
// tokens, or if a token of every `step`-th example is not in [0, vocab_size); others are not looked at.
template <typename Token, typename Index>
void check_examples(std::span<const Token> tokens, std::span<const Index> ends, int64_t context_length,
                    int64_t vocab_size, int64_t step);

}  // namespace charlm::text
