#include "frame.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace charlm::text {

int64_t framed_size(int64_t characters, int64_t lines, int64_t context_length) {
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max() / 8;
  if (lines > 0 && context_length > (kLargest - characters) / lines) {
    throw std::length_error("context_length is too long for this many lines");
  }
  return characters + lines * context_length + 1;
}

template <typename Token>
void frame_lines(std::span<const Token> tokens, std::span<const int64_t> ends, std::span<const int64_t> order,
                 int64_t context_length, Token boundary, std::span<Token> framed, std::span<int64_t> framed_ends) {
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
    framed_ends[k] = examples += length + 1;
  }
  if (written + 1 != size) throw std::out_of_range("framed is too large");
  *out = boundary;
}

template void frame_lines(std::span<const uint8_t>, std::span<const int64_t>, std::span<const int64_t>, int64_t,
                          uint8_t, std::span<uint8_t>, std::span<int64_t>);
template void frame_lines(std::span<const int16_t>, std::span<const int64_t>, std::span<const int64_t>, int64_t,
                          int16_t, std::span<int16_t>, std::span<int64_t>);
template void frame_lines(std::span<const int32_t>, std::span<const int64_t>, std::span<const int64_t>, int64_t,
                          int32_t, std::span<int32_t>, std::span<int64_t>);

}  // namespace charlm::text
