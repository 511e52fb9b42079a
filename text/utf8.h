// UTF-8: decoding, and the repair of what isn't UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace atl::text {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// What stands at the start of a byte string.
struct Utf8Unit {
  enum class Kind {
    kCharacter,   // one well-formed character
    kInvalid,     // a maximal invalid subpart: one U+FFFD
    kIncomplete,  // all bytes left begin a character but don't finish it
  };
  Kind kind = Kind::kInvalid;
  size_t num_bytes = 0;     // 1..4; kIncomplete: 1..3, the rest of the text
  uint32_t code_point = 0;  // of kCharacter
};

// Reads the first unit of `text`, which isn't empty. "Maximal subpart" as in the Unicode Standard,
// section 3.9, which is also what Rust's from_utf8_lossy and the WHATWG decoder replace.
Utf8Unit next_utf8_unit(std::string_view text);

bool is_valid_utf8(std::string_view text);

// `text` with each maximal invalid subpart replaced by U+FFFD.
std::string repair_utf8(std::string_view text);

// Appends a code point (a scalar value) as UTF-8.
void append_utf8(uint32_t code_point, std::string& out);

// Repairs text that comes in parts, cut anywhere: appends what is decided to `out` and keeps a
// possible beginning of a character (at most 3 bytes) back. The output of all push() calls and
// flush() together is repair_utf8() of the whole.
class Utf8StreamRepairer {
 public:
  void push(std::string_view bytes, std::string& out);
  // The text ends here: an incomplete character becomes U+FFFD.
  void flush(std::string& out);

 private:
  std::string held_;
};

}  // namespace atl::text
