// Text as it comes from a file or a pipe, buffer by buffer, in pieces of whole characters, words or lines.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace charlm::text {

// A place in a text as an editor shows it: line and column, in characters, from 1.
struct Place {
  int64_t line = 1;
  int64_t column = 1;

  // The place after a piece of text that begins here.
  void advance(std::string_view piece);
};

// Thrown for what is not text: NUL, or a byte that is not UTF-8.
struct NotText {
  int64_t offset;  // of the byte, in all that was read
  uint8_t byte;
  Place place;
};

// Checks UTF-8, drops a byte order mark, and makes "\n" of "\r\n" and "\r".
class TextReader {
 public:
  // A piece ends after one of the ASCII characters `cuts`, or, where there are none, after any character; the last one
  // ends with the text.
  explicit TextReader(std::string cuts) : cuts_(std::move(cuts)) {}

  // Takes the next bytes of the text, and returns the next piece of it, which may be empty, and is there until the next
  // call. After the last bytes the rest of the text is one piece. Throws NotText.
  std::string_view read(std::string_view data, bool last);

  // Where the piece last returned begins.
  const Place& place() const { return place_; }

 private:
  void drop_byte_order_mark(bool last);
  void normalize(size_t size);

  std::string cuts_;
  std::string pending_;    // the piece last returned, text for later ones, and bytes that are not yet checked
  size_t given_ = 0;       // size of that piece
  size_t clean_ = 0;       // where the bytes begin that are not yet checked
  int64_t read_ = 0;       // how many bytes were checked
  bool started_ = false;   // whether a byte order mark can no longer come
  bool after_cr_ = false;  // whether the text so far ends with "\r", which is "\n" by now
  Place place_;
};

// The byte offset of the first byte that is not text, or -1 if there is none.
int64_t find_not_text(std::string_view text);

}  // namespace charlm::text
