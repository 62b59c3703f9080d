// The lines of a text: separated by "\n", without trailing white space, blank ones left out.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "utf8.h"

namespace charlm::text {

inline std::string_view strip_trailing_space(std::string_view line) {
  const uint8_t* begin = bytes_of(line);
  const uint8_t* end = begin + line.size();
  while (end > begin) {
    const uint8_t* last = end - 1;
    while (last > begin && (*last & 0xC0) == 0x80) --last;
    char32_t character = 0;
    if (decode_utf8(last, end, character) == 0 || !is_space(character)) break;
    end = last;
  }
  return line.substr(0, static_cast<size_t>(end - begin));
}

// Calls visit(line) for each line that is not blank.
template <typename Visit>
void for_each_line(std::string_view text, Visit visit) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = strip_trailing_space(text.substr(begin, end - begin));
    if (!line.empty()) visit(line);
    begin = end + 1;
  }
}

}  // namespace charlm::text
