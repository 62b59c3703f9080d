// What characters a text has.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace charlm::text {

// The byte offset of the first byte that is not text, NUL or not UTF-8, or -1 if there is none.
int64_t find_not_text(std::string_view text);

// The distinct characters of a text in the order of their code points. With `by_line` only those of its lines
// (lines.h): neither line ends nor trailing white space count. Throws InvalidUtf8.
std::u32string distinct_characters(std::string_view text, bool by_line);

}  // namespace charlm::text
