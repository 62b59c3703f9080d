#include "text_reader.h"

#include <algorithm>
#include <cstring>

#include "utf8.h"

namespace charlm::text {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

// True if every one of the eight bytes lies in 0x01..0x7F.
bool is_plain_ascii(const uint8_t* p) {
  uint64_t word = 0;
  std::memcpy(&word, p, sizeof word);
  constexpr uint64_t kHighBits = 0x8080808080808080;
  constexpr uint64_t kOnes = 0x0101010101010101;
  return ((word | (word - kOnes)) & kHighBits) == 0;
}

// Whether bytes that are no character could begin one.
bool begins_character(std::string_view bytes) {
  const uint8_t* p = bytes_of(bytes);
  const auto size = bytes.size();
  if (size == 0 || p[0] < 0xC2 || p[0] > 0xF4) return false;
  if (size >= (p[0] < 0xE0 ? 2U : p[0] < 0xF0 ? 3U : 4U)) return false;
  if (size == 1) return true;
  // What decode_utf8 refuses of the values is decided by the second byte.
  const uint8_t low = p[0] == 0xE0 ? 0xA0 : p[0] == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = p[0] == 0xED ? 0x9F : p[0] == 0xF4 ? 0x8F : 0xBF;
  return p[1] >= low && p[1] <= high && (size == 2 || (p[2] & 0xC0) == 0x80);
}

}  // namespace

void Place::advance(std::string_view piece) {
  const size_t end = piece.rfind('\n');
  if (end != std::string_view::npos) {
    line += std::count(piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(end) + 1, '\n');
    column = 1;
    piece.remove_prefix(end + 1);
  }
  column += count_characters(piece);
}

std::string_view TextReader::read(std::string_view data, bool last) {
  place_.advance(std::string_view(pending_).substr(0, given_));
  pending_.erase(0, given_);
  clean_ -= given_;
  given_ = 0;
  pending_.append(data);
  drop_byte_order_mark(last);
  if (!started_) return {};

  const size_t old = clean_;
  const std::string_view bytes = std::string_view(pending_).substr(clean_);
  const int64_t bad = find_not_text(bytes);
  const size_t valid = bad < 0 ? bytes.size() : static_cast<size_t>(bad);
  const bool incomplete = bad >= 0 && !last && begins_character(bytes.substr(valid));
  const uint8_t bad_byte = bad < 0 ? 0 : bytes_of(bytes)[valid];
  normalize(valid);
  if (bad >= 0 && !incomplete) {
    Place place = place_;
    place.advance(std::string_view(pending_).substr(0, clean_));
    throw NotText{read_, bad_byte, place};
  }
  given_ = clean_;
  if (!last && !cuts_.empty()) {
    // What was there before has no place to cut: it would have been cut there.
    const size_t cut = std::string_view(pending_).substr(old, clean_ - old).find_last_of(cuts_);
    given_ = cut == std::string_view::npos ? 0 : old + cut + 1;
  }
  return std::string_view(pending_).substr(0, given_);
}

void TextReader::drop_byte_order_mark(bool last) {
  if (started_ || (!last && pending_.size() < kByteOrderMark.size() && kByteOrderMark.starts_with(pending_))) return;
  started_ = true;
  if (pending_.starts_with(kByteOrderMark)) {
    pending_.erase(0, kByteOrderMark.size());
    read_ += static_cast<int64_t>(kByteOrderMark.size());
  }
}

// Checked bytes become text: the first `size` of those that were not.
void TextReader::normalize(size_t size) {
  read_ += static_cast<int64_t>(size);
  char* const begin = pending_.data() + clean_;
  if (size == 0) return;
  if (!after_cr_ && std::memchr(begin, '\r', size) == nullptr) {
    clean_ += size;
    return;
  }
  char* out = begin;
  for (size_t i = 0; i < size; ++i) {
    const char byte = begin[i];
    const bool second = byte == '\n' && after_cr_;
    after_cr_ = byte == '\r';
    if (!second) *out++ = after_cr_ ? '\n' : byte;
  }
  const auto kept = static_cast<size_t>(out - begin);
  pending_.erase(clean_ + kept, size - kept);
  clean_ += kept;
}

int64_t find_not_text(std::string_view text) {
  const uint8_t* const begin = bytes_of(text);
  const uint8_t* const end = begin + text.size();
  for (const uint8_t* p = begin; p < end;) {
    while (end - p >= 8 && is_plain_ascii(p)) p += 8;
    for (const uint8_t* const stop = std::min(p + 8, end); p < stop;) {
      char32_t character = 0;
      const int size = decode_utf8(p, end, character);
      if (size == 0 || character == 0) return p - begin;
      p += size;
    }
  }
  return -1;
}

}  // namespace charlm::text
