// Lines framed by boundaries: the token layout of lines mode.
#pragma once

#include <cstdint>
#include <span>

namespace charlm::text {

// The number of tokens of `lines` lines with `characters` characters in all, framed for contexts of `context_length`:
// characters + lines * context_length + 1. std::invalid_argument if context_length < 1, std::length_error if the result
// is more than memory can address.
int64_t framed_size(int64_t characters, int64_t lines, int64_t context_length);

// Writes the lines order[0], order[1], ... each as `context_length` boundaries and its tokens, then one boundary, which
// closes the last line. Line i of `tokens` runs from ends[i - 1] to ends[i]. framed_ends[k] becomes the number of
// examples up to and including the k-th written line (a line of L characters has L + 1).
// Token is uint8_t, int16_t or int32_t, Index is int32_t or int64_t. std::out_of_range if order or ends point outside
// their arrays, or `framed` has not the size that they need.
template <typename Token, typename Index>
void frame_lines(std::span<const Token> tokens, std::span<const Index> ends, std::span<const Index> order,
                 int64_t context_length, Token boundary, std::span<Token> framed, std::span<Index> framed_ends);

}  // namespace charlm::text
