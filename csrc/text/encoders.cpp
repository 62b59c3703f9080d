#include "encoders.h"

#include <algorithm>
#include <stdexcept>

#include "frame.h"
#include "lines.h"

namespace charlm::text {
namespace {

[[noreturn]] void refuse() { throw std::out_of_range("the text has other lines than were counted"); }

}  // namespace

size_t split_of(int64_t line, std::span<const uint8_t> splits, size_t split) {
  if (!splits.empty()) {
    if (line >= std::ssize(splits)) refuse();
    split = splits[static_cast<size_t>(line)];
  }
  if (split >= kSplits && split != kDropped) throw std::out_of_range("a line has a split that does not exist");
  return split;
}

template <typename Codec>
template <typename Token>
int64_t StreamEncoder<Codec>::add(const Codec& codec, std::string_view piece, std::span<Token> tokens) {
  if (size_ > std::ssize(tokens)) throw TooManyTokens{};
  Token* const end = tokens.data() + tokens.size();
  size_ = codec.encode_stream(piece, stream_, tokens.data() + size_, end) - tokens.data();
  return size_;
}

template <typename Codec>
void LineTotals<Codec>::add(std::string_view piece, std::span<const uint8_t> splits, size_t split) {
  for_each_line(piece, [&](std::string_view line) {
    const size_t chosen = split_of(line_++, splits, split);
    if (chosen == kDropped) return;
    ++lines[chosen];
    tokens[chosen] += Codec::count(line);
  });
}

template <typename Codec>
LineFramer<Codec>::LineFramer(const std::array<int64_t, kSplits>& lines, const std::array<int64_t, kSplits>& tokens,
                              int64_t context_length, int64_t boundary)
    : context_length_(context_length), boundary_(boundary) {
  if (context_length < 0) throw std::invalid_argument("context_length must not be negative");
  int64_t all_tokens = 0;
  for (size_t i = 0; i < kSplits; ++i) {
    constexpr int64_t kLargest = int64_t{1} << 56;
    if (lines[i] < 0 || tokens[i] < 0) throw std::invalid_argument("numbers of lines and tokens must not be negative");
    if (lines[i] > kLargest || tokens[i] > kLargest) throw std::length_error("the framed lines are longer than memory");
    Region& region = regions_[i];
    region.token = size_ - 1;
    region.line = lines_;
    region.examples = all_tokens + lines_;
    all_tokens += tokens[i];
    lines_ += lines[i];
    size_ = context_length == 0 ? all_tokens + 1 : framed_size(all_tokens, lines_, context_length);
    region.last_token = size_ - 1;
    region.last_line = lines_;
  }
}

template <typename Codec>
template <typename Token, typename Index>
void LineFramer<Codec>::add(const Codec& codec, std::string_view piece, std::span<const uint8_t> splits, size_t split,
                            std::span<Token> tokens, std::span<Index> ends) {
  if (std::ssize(tokens) != size_ || std::ssize(ends) != lines_) refuse();
  const auto boundary = static_cast<Token>(boundary_);
  for_each_line(piece, [&](std::string_view line) {
    const size_t chosen = split_of(line_++, splits, split);
    if (chosen == kDropped) return;
    Region& region = regions_[chosen];
    if (region.line == region.last_line || region.last_token - region.token < context_length_) refuse();
    Token* const begin = std::fill_n(tokens.data() + region.token, context_length_, boundary);
    const auto offset = line.data() - piece.data();
    Token* end = nullptr;
    try {
      end = codec.encode(line, begin, tokens.data() + region.last_token);
    } catch (const TooManyTokens&) {
      refuse();
    } catch (const UnknownSymbol& error) {
      throw UnknownSymbol{offset + error.offset, error.size};
    }
    region.examples += end - begin + 1;
    region.token = end - tokens.data();
    ends[static_cast<size_t>(region.line++)] = static_cast<Index>(region.examples);
  });
}

template <typename Codec>
template <typename Token>
void LineFramer<Codec>::close(std::span<Token> tokens) {
  if (std::ssize(tokens) != size_) refuse();
  for (const Region& region : regions_) {
    if (region.token != region.last_token || region.line != region.last_line) refuse();
  }
  tokens.back() = static_cast<Token>(boundary_);
}

#define CHARLM_INSTANTIATE_INDEX(Codec, Token, Index)                                                    \
  template void LineFramer<Codec>::add(const Codec&, std::string_view, std::span<const uint8_t>, size_t, \
                                       std::span<Token>, std::span<Index>);
#define CHARLM_INSTANTIATE_TOKEN(Codec, Token)                                                  \
  template int64_t StreamEncoder<Codec>::add(const Codec&, std::string_view, std::span<Token>); \
  template void LineFramer<Codec>::close(std::span<Token>);                                     \
  CHARLM_INSTANTIATE_INDEX(Codec, Token, int32_t)                                               \
  CHARLM_INSTANTIATE_INDEX(Codec, Token, int64_t)
#define CHARLM_INSTANTIATE(Codec)          \
  template class LineTotals<Codec>;        \
  template class LineFramer<Codec>;        \
  CHARLM_INSTANTIATE_TOKEN(Codec, uint8_t) \
  CHARLM_INSTANTIATE_TOKEN(Codec, int16_t) \
  CHARLM_INSTANTIATE_TOKEN(Codec, int32_t)
CHARLM_INSTANTIATE(CharacterCodec)
CHARLM_INSTANTIATE(ByteCodec)
CHARLM_INSTANTIATE(WordCodec)
#undef CHARLM_INSTANTIATE
#undef CHARLM_INSTANTIATE_TOKEN
#undef CHARLM_INSTANTIATE_INDEX

}  // namespace charlm::text
