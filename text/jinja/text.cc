#include "text/jinja/text.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "text/utf8.h"

namespace atl::text::jinja {
namespace {

uint32_t take_code_point(std::string_view& text) {
  const Utf8Unit unit = next_utf8_unit(text);
  text.remove_prefix(unit.num_bytes);
  return unit.code_point;
}

// Where the last character begins.
size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (text[at] & 0xC0) == 0x80) --at;
  return at;
}

// The Greek letters with tonos: lower and upper case stand in no common order.
constexpr std::pair<uint32_t, uint32_t> kTonos[] = {{0x3AC, 0x386}, {0x3AD, 0x388}, {0x3AE, 0x389},
                                                    {0x3AF, 0x38A}, {0x3CC, 0x38C}, {0x3CD, 0x38E},
                                                    {0x3CE, 0x38F}, {0xFF, 0x178}};

// Of Latin Extended-A, where upper and lower case take turns: whether c is the upper one, the lower
// one, or neither (0).
int latin_a_case(uint32_t c) {
  if (c < 0x100 || c > 0x177 || c == 0x130 || c == 0x131 || c == 0x138 || c == 0x149) return 0;
  const bool odd_is_upper = c >= 0x139 && c <= 0x148;
  return (c % 2 == 1) == odd_is_upper ? 1 : -1;
}

uint32_t to_lower(uint32_t c) {
  if (latin_a_case(c) == 1) return c + 1;
  for (const auto& [lower, upper] : kTonos) {
    if (c == upper) return lower;
  }
  if (c >= 'A' && c <= 'Z') return c + 32;
  if (c >= 0xC0 && c <= 0xDE && c != 0xD7) return c + 32;
  if (c >= 0x391 && c <= 0x3A9 && c != 0x3A2) return c + 32;
  if (c >= 0x410 && c <= 0x42F) return c + 32;
  if (c >= 0x400 && c <= 0x40F) return c + 80;
  return c;
}

uint32_t to_upper(uint32_t c) {
  if (latin_a_case(c) == -1) return c - 1;
  for (const auto& [lower, upper] : kTonos) {
    if (c == lower) return upper;
  }
  if (c >= 'a' && c <= 'z') return c - 32;
  if (c >= 0xE0 && c <= 0xFE && c != 0xF7) return c - 32;
  if (c >= 0x3B1 && c <= 0x3C9 && c != 0x3C2) return c - 32;
  if (c >= 0x430 && c <= 0x44F) return c - 32;
  if (c >= 0x450 && c <= 0x45F) return c - 80;
  return c;
}

bool is_cased(uint32_t c) { return to_lower(c) != c || to_upper(c) != c || c == 0xDF; }

bool in_chars(uint32_t c, const std::string* chars) {
  if (chars == nullptr) return is_python_space(c);
  for (std::string_view rest = *chars; !rest.empty();) {
    if (take_code_point(rest) == c) return true;
  }
  return false;
}

size_t space_bytes(std::string_view text) {
  const size_t all = text.size();
  return all - stripped(text, nullptr, Side::kLeft).size();
}

size_t word_bytes(std::string_view text) {
  std::string_view rest = text;
  while (!rest.empty()) {
    std::string_view behind = rest;
    if (is_python_space(take_code_point(behind))) break;
    rest = behind;
  }
  return text.size() - rest.size();
}

std::vector<std::string_view> split_at_space(std::string_view text, int64_t max, Budget& budget) {
  std::vector<std::string_view> parts;
  text.remove_prefix(space_bytes(text));
  while (!text.empty()) {
    budget.use_bytes(kGrowingTimes * sizeof(std::string_view));
    if (max >= 0 && static_cast<int64_t>(parts.size()) == max) {
      parts.push_back(text);
      break;
    }
    const size_t bytes = word_bytes(text);
    parts.push_back(text.substr(0, bytes));
    text.remove_prefix(bytes);
    text.remove_prefix(space_bytes(text));
  }
  return parts;
}

}  // namespace

const std::string& text_of(const Value& value, std::string_view who) {
  if (!value.is_string()) {
    refuse(fmt::format("{}: expected a str, found {}", who, type_name(value)));
  }
  return value.string();
}

Value text_value(std::string_view text, Budget& budget) { return budget.text(std::string(text)); }

std::string str_of(const Value& value, Budget& budget) {
  TextBuilder out(budget);
  write_str(value, out);
  std::string text = out.take();
  budget.use_bytes(text.capacity());
  return text;
}

Value join_texts(const std::string& separator, const Value& items, Budget& budget) {
  TextBuilder out(budget);
  bool first = true;
  for (const Value& item : items_of(items, budget)) {
    if (!std::exchange(first, false)) out << separator;
    out << text_of(item, "join");
  }
  return out.value();
}

bool is_python_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

size_t num_code_points(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

size_t byte_offset(std::string_view text, size_t index) {
  size_t at = 0;
  for (; at < text.size(); ++at) {
    if ((text[at] & 0xC0) == 0x80) continue;
    if (index-- == 0) break;
  }
  return at;
}

std::string_view stripped(std::string_view text, const std::string* chars, Side side) {
  while (side != Side::kRight && !text.empty()) {
    std::string_view rest = text;
    if (!in_chars(take_code_point(rest), chars)) break;
    text = rest;
  }
  while (side != Side::kLeft && !text.empty()) {
    const size_t last = last_character(text);
    if (!in_chars(next_utf8_unit(text.substr(last)).code_point, chars)) break;
    text = text.substr(0, last);
  }
  return text;
}

std::string with_case(std::string_view text, Case to, Budget& budget) {
  std::string out;
  budget.use_bytes(kGrowingTimes * text.size());
  bool in_word = false;
  while (!text.empty()) {
    const uint32_t c = take_code_point(text);
    const bool upper = to == Case::kUpper || (to == Case::kTitle && !in_word) ||
                       (to == Case::kCapitalized && out.empty());
    if (upper && c == 0xDF) {
      out += to == Case::kUpper ? "SS" : "Ss";
    } else {
      append_utf8(upper ? to_upper(c) : to_lower(c), out);
    }
    in_word = is_cased(c);
  }
  return out;
}

std::string title_filter(std::string_view text, Budget& budget) {
  std::string out;
  budget.use_bytes(kGrowingTimes * text.size());
  bool at_start = true;
  while (!text.empty()) {
    const uint32_t c = take_code_point(text);
    append_utf8(at_start ? to_upper(c) : to_lower(c), out);
    at_start = is_python_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
  }
  return out;
}

std::vector<std::string_view> split(std::string_view text, const std::string* separator,
                                    int64_t max, Budget& budget) {
  if (separator == nullptr) return split_at_space(text, max, budget);
  if (separator->empty()) refuse("split: the separator is empty");
  std::vector<std::string_view> parts;
  for (;;) {
    budget.use_bytes(kGrowingTimes * sizeof(std::string_view));
    const bool full = max >= 0 && static_cast<int64_t>(parts.size()) == max;
    const size_t at = full ? text.npos : text.find(*separator);
    parts.push_back(text.substr(0, at));
    if (at == text.npos) return parts;
    text.remove_prefix(at + separator->size());
  }
}

std::vector<std::string_view> split_from_end(std::string_view text, const std::string* separator,
                                             int64_t max, Budget& budget) {
  if (max < 0) return split(text, separator, max, budget);
  if (separator == nullptr) refuse("rsplit: expected a separator");
  if (separator->empty()) refuse("rsplit: the separator is empty");
  std::vector<std::string_view> parts;
  for (;;) {
    budget.use_bytes(kGrowingTimes * sizeof(std::string_view));
    const bool full = static_cast<int64_t>(parts.size()) == max;
    const size_t at = full ? text.npos : text.rfind(*separator);
    if (at == text.npos) {
      parts.push_back(text);
      break;
    }
    parts.push_back(text.substr(at + separator->size()));
    text = text.substr(0, at);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends, Budget& budget) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    budget.use_bytes(kGrowingTimes * sizeof(std::string_view));
    const size_t end = std::min(text.find_first_of("\n\r\v\f\x1C\x1D\x1E"), text.size());
    size_t behind = std::min(end + 1, text.size());
    if (text.substr(end).starts_with("\r\n")) ++behind;
    lines.push_back(text.substr(0, keep_ends ? behind : end));
    text.remove_prefix(behind);
  }
  return lines;
}

Value replaced(std::string_view text, std::string_view from, std::string_view to, int64_t max,
               Budget& budget) {
  TextBuilder out(budget);
  for (; max != 0 && !from.empty(); --max) {
    const size_t at = text.find(from);
    if (at == text.npos) break;
    out << text.substr(0, at) << to;
    budget.step();
    text.remove_prefix(at + from.size());
  }
  // Python puts `to` around every character where `from` is empty.
  for (bool first = true; max != 0 && from.empty(); --max, first = false) {
    if (!first) {
      if (text.empty()) break;
      const size_t bytes = next_utf8_unit(text).num_bytes;
      out << text.substr(0, bytes);
      text.remove_prefix(bytes);
    }
    out << to;
    budget.step();
  }
  out << text;
  return out.value();
}

std::optional<int64_t> parse_integer(std::string_view text, int base) {
  text = stripped(text, nullptr, Side::kBoth);
  std::string digits;
  bool negative = false;
  if (text.starts_with('-') || text.starts_with('+')) {
    negative = text[0] == '-';
    text.remove_prefix(1);
  }
  if (base == 16 && (text.starts_with("0x") || text.starts_with("0X"))) text.remove_prefix(2);
  if (base == 8 && (text.starts_with("0o") || text.starts_with("0O"))) text.remove_prefix(2);
  if (base == 2 && (text.starts_with("0b") || text.starts_with("0B"))) text.remove_prefix(2);
  if (text.empty() || text[0] == '-' || text[0] == '_' || text.back() == '_') return std::nullopt;
  if (text.find("__") != text.npos) return std::nullopt;
  if (negative) digits = "-";
  for (char c : text) {
    if (c != '_') digits += c;
  }
  int64_t value = 0;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (read.ec != std::errc() || read.ptr != digits.data() + digits.size()) return std::nullopt;
  return value;
}

std::optional<double> parse_float(std::string_view text) {
  text = stripped(text, nullptr, Side::kBoth);
  if (text.starts_with('+')) {
    text.remove_prefix(1);
    if (text.starts_with('-')) return std::nullopt;
  }
  double value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || read.ec != std::errc() || read.ptr != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

}  // namespace atl::text::jinja
