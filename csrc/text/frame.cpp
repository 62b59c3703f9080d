#include "frame.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace charlm::text {

int64_t framed_size(int64_t characters, int64_t lines, int64_t context_length) {
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max() / 8;
  if (context_length < 1) throw std::invalid_argument("context_length must be at least 1");
  if (characters < 0 || characters > kLargest || (lines > 0 && context_length > (kLargest - characters) / lines)) {
    throw std::length_error("the framed lines are longer than memory");
  }
  return characters + lines * context_length + 1;
}

template <typename Token, typename Index>
void frame_lines(std::span<const Token> tokens, std::span<const Index> ends, std::span<const Index> order,
                 int64_t context_length, Token boundary, std::span<Token> framed, std::span<Index> framed_ends) {
  const auto lines = static_cast<int64_t>(ends.size());
  const auto size = static_cast<int64_t>(framed.size());
  if (order.size() != framed_ends.size()) throw std::out_of_range("order and framed_ends differ in size");
  Token* out = framed.data();
  int64_t written = 0;
  int64_t examples = 0;
  for (size_t k = 0; k < order.size(); ++k) {
    const int64_t line = order[k];
    if (line < 0 || line >= lines) throw std::out_of_range("order points outside the lines");
    const int64_t begin = line == 0 ? 0 : ends[line - 1];
    const int64_t end = ends[line];
    if (begin < 0 || end < begin || end > static_cast<int64_t>(tokens.size())) {
      throw std::out_of_range("ends must rise from 0 to the number of tokens");
    }
    const int64_t length = end - begin;
    written += context_length + length;
    if (written >= size) throw std::out_of_range("framed is too small");
    out = std::fill_n(out, context_length, boundary);
    out = std::copy_n(tokens.data() + begin, length, out);
    examples += length + 1;
    framed_ends[k] = static_cast<Index>(examples);
  }
  if (written + 1 != size) throw std::out_of_range("framed is too large");
  *out = boundary;
}

#define CHARLM_INSTANTIATE(Token, Index)                                                                            \
  template void frame_lines(std::span<const Token>, std::span<const Index>, std::span<const Index>, int64_t, Token, \
                            std::span<Token>, std::span<Index>);
CHARLM_INSTANTIATE(uint8_t, int32_t)
CHARLM_INSTANTIATE(uint8_t, int64_t)
CHARLM_INSTANTIATE(int16_t, int32_t)
CHARLM_INSTANTIATE(int16_t, int64_t)
CHARLM_INSTANTIATE(int32_t, int32_t)
CHARLM_INSTANTIATE(int32_t, int64_t)
#undef CHARLM_INSTANTIATE

}  // namespace charlm::text
