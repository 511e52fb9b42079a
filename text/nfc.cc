#include "text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "text/utf8.h"

namespace atl::text {
namespace {

constexpr auto kCompose = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);

// Below this every code point is a letter of its own that stays as it is and joins nothing before
// it: marks begin at U+0300.
constexpr uint32_t kFirstMark = 0x300;
// Code points that one is taken apart into, and theirs: four at most in Unicode 15.
constexpr size_t kPartsMax = 32;

int mark_class(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

// Marks between two letters by their class. The library's own sort takes the square of their
// number, and texts are of strangers.
void sort_marks(std::vector<utf8proc_int32_t>& points) {
  const auto by_class = [](utf8proc_int32_t a, utf8proc_int32_t b) {
    return mark_class(a) < mark_class(b);
  };
  const auto is_letter = [](utf8proc_int32_t point) { return mark_class(point) == 0; };
  for (auto begin = points.begin(); begin != points.end();) {
    begin = std::find_if_not(begin, points.end(), is_letter);
    const auto end = std::find_if(begin, points.end(), is_letter);
    std::stable_sort(begin, end, by_class);
    begin = end;
  }
}

// A stretch that begins with a letter.
void append_nfc(std::string_view text, std::string& out) {
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  while (!text.empty()) {
    const Utf8Unit unit = next_utf8_unit(text);
    text.remove_prefix(unit.num_bytes);
    utf8proc_int32_t parts[kPartsMax];
    int bound_class = UTF8PROC_BOUNDCLASS_START;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(unit.code_point), parts, kPartsMax, kCompose, &bound_class);
    CHECK(count >= 0 && count <= static_cast<utf8proc_ssize_t>(kPartsMax));
    points.insert(points.end(), parts, parts + count);
  }
  sort_marks(points);
  const utf8proc_ssize_t count = utf8proc_normalize_utf32(
      points.data(), static_cast<utf8proc_ssize_t>(points.size()), kCompose);
  CHECK_GE(count, 0);
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    append_utf8(static_cast<uint32_t>(points[static_cast<size_t>(i)]), out);
  }
}

}  // namespace

// Only stretches around code points from U+0300 on are looked at: the one before such a one may
// join it.
std::string to_nfc(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  size_t begin = 0;  // of the last code point below kFirstMark, or of a stretch
  size_t copied = 0;
  bool in_stretch = false;
  for (size_t at = 0; at < text.size();) {
    const Utf8Unit unit = next_utf8_unit(text.substr(at));
    if (unit.code_point < kFirstMark) {
      if (in_stretch) {
        append_nfc(text.substr(begin, at - begin), out);
        copied = at;
        in_stretch = false;
      }
      begin = at;
    } else if (!in_stretch) {
      out += text.substr(copied, begin - copied);
      in_stretch = true;
    }
    at += unit.num_bytes;
  }
  if (in_stretch) {
    append_nfc(text.substr(begin), out);
  } else {
    out += text.substr(copied);
  }
  return out;
}

}  // namespace atl::text
