#include "cli/rolling_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <vector>

namespace atl::cli {
namespace {

constexpr int kTabColumns = 4;

struct Range {
  char32_t first, last;
};
constexpr Range kWide[] = {
    {0x1100, 0x115F},   {0x2E80, 0x303E},   {0x3041, 0xA4CF},  {0xA960, 0xA97F}, {0xAC00, 0xD7A3},
    {0xF900, 0xFAFF},   {0xFE30, 0xFE6F},   {0xFF00, 0xFF60},  {0xFFE0, 0xFFE6}, {0x1F300, 0x1F64F},
    {0x1F680, 0x1F6FF}, {0x1F900, 0x1FAFF}, {0x20000, 0x3FFFD}};
constexpr Range kNone[] = {{0x0300, 0x036F}, {0x0483, 0x0489}, {0x0591, 0x05BD}, {0x064B, 0x065F},
                           {0x0E31, 0x0E31}, {0x0E34, 0x0E3A}, {0x0E47, 0x0E4E}, {0x200B, 0x200F},
                           {0x20D0, 0x20FF}, {0xFE00, 0xFE0F}, {0xFE20, 0xFE2F}, {0xFEFF, 0xFEFF}};

bool is_in(char32_t c, const Range* begin, const Range* end) {
  return std::any_of(begin, end, [c](const Range& r) { return r.first <= c && c <= r.last; });
}

// The code point at `at`, and its length in bytes.
std::pair<char32_t, size_t> code_point_at(std::string_view text, size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  const size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t c = length == 1 ? lead : lead & (0x7F >> length);
  for (size_t i = 1; i < length && at + i < text.size(); ++i) {
    c = c << 6 | (static_cast<unsigned char>(text[at + i]) & 0x3F);
  }
  return {c, std::min(length, text.size() - at)};
}

}  // namespace

int columns_of(char32_t code_point) {
  if (is_in(code_point, std::begin(kNone), std::end(kNone))) return 0;
  return is_in(code_point, std::begin(kWide), std::end(kWide)) ? 2 : 1;
}

// A row that is full leaves the cursor in a place that terminals differ about.
RollingText::RollingText(int columns, int rows_max)
    : columns_(std::max(columns, 8) - 1), rows_max_(rows_max) {}

std::string RollingText::add(std::string_view text) {
  const std::string taken_away = erase();
  text_ += text;
  return taken_away + draw();
}

std::string RollingText::erase() {
  std::string out;
  if (rows_shown_ > 1) out = fmt::format("\x1b[{}A", rows_shown_ - 1);
  if (rows_shown_ > 0) out += "\r\x1b[J";
  rows_shown_ = 0;
  return out;
}

std::string RollingText::draw() {
  std::vector<std::string> rows(1);
  std::vector<size_t> begins = {0};
  int column = 0;
  const auto next_row = [&](size_t begin) {
    rows.emplace_back();
    begins.push_back(begin);
    column = 0;
  };
  for (size_t at = 0; at < text_.size();) {
    const auto [c, length] = code_point_at(text_, at);
    const std::string_view bytes = std::string_view(text_).substr(at, length);
    const int wide = c == '\t' ? kTabColumns : columns_of(c);
    if (c == '\n') {
      next_row(at + length);
    } else {
      if (column + wide > columns_) next_row(at);
      rows.back() += c == '\t' ? std::string(kTabColumns, ' ') : std::string(bytes);
      column += wide;
    }
    at += length;
  }
  const size_t shown = std::min(rows.size(), static_cast<size_t>(rows_max_));
  const size_t first = rows.size() - shown;
  std::string out;
  for (size_t i = first; i < rows.size(); ++i) out += (i > first ? "\r\n" : "") + rows[i];
  text_.erase(0, begins[first]);  // it never comes back
  rows_shown_ = static_cast<int>(shown);
  return out;
}

}  // namespace atl::cli
