#include "text/regex_translation.h"

#include <fmt/core.h>

#include <array>
#include <optional>

#include "base/result.h"
#include "text/utf8.h"

namespace atl::text {
namespace {

constexpr int kClassDepthMax = 20;
constexpr uint32_t kCodePointMax = 0x10FFFF;
constexpr CodePointRange kHexDigits[] = {{'0', '9'}, {'A', 'F'}, {'a', 'f'}};

bool is_ascii_letter_or_digit(uint32_t c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

std::string escaped(uint32_t code_point) { return fmt::format("\\x{{{:X}}}", code_point); }

std::string written_out(const CodePointSet& set) {
  std::string out;
  for (const CodePointRange& range : set) {
    out += escaped(range.first);
    if (range.last > range.first) out += "-" + escaped(range.last);
  }
  return out;
}

CodePointSet without_surrogates(const CodePointSet& set) { return complement(complement(set)); }

// Reads the pattern from the left and writes its PCRE2 form to out_.
class Translator {
 public:
  Translator(std::string_view pattern, PcreProperties properties)
      : pattern_(pattern), properties_(properties) {}

  std::string run() {
    while (!at_end()) element();
    return std::move(out_);
  }

 private:
  // A set of characters inside or outside of brackets.
  struct Set {
    CodePointSet code_points;
    std::string members;  // the same as they stand inside brackets
    bool negated = false;
  };

  bool at_end() const { return pos_ >= pattern_.size(); }
  char peek(size_t ahead = 0) const {
    return pos_ + ahead < pattern_.size() ? pattern_[pos_ + ahead] : '\0';
  }
  bool take(std::string_view text) {
    if (!pattern_.substr(pos_).starts_with(text)) return false;
    pos_ += text.size();
    return true;
  }
  uint32_t take_code_point() {
    const Utf8Unit unit = next_utf8_unit(pattern_.substr(pos_));
    pos_ += unit.num_bytes;
    return unit.code_point;
  }
  [[noreturn]] void refuse(size_t at, std::string_view what) const {
    throw LoadError(fmt::format("{} at byte {} isn't supported", what, at));
  }
  [[noreturn]] void refuse_malformed(size_t at, std::string_view what) const {
    throw LoadError(fmt::format("{} at byte {}", what, at));
  }

  void element() {
    switch (peek()) {
      case '\\':
        escape_outside_class();
        break;
      case '[':
        character_class();
        break;
      case '(':
        group();
        break;
      case '{':
        interval();
        break;
      default:
        plain();
    }
  }

  // Characters without a meaning of their own, and the operators that mean the same in PCRE2.
  void plain() {
    const uint32_t c = take_code_point();
    if (c < 0x80 &&
        std::string_view("|)*+?^$.").find(static_cast<char>(c)) != std::string_view::npos) {
      out_ += static_cast<char>(c);
    } else {
      out_ += escaped(c);
    }
  }

  void group() {
    static constexpr std::array<std::string_view, 8> kOpeners = {
        "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"};
    for (std::string_view opener : kOpeners) {
      if (take(opener)) {
        out_ += opener;
        return;
      }
    }
    if (peek(1) == '?' || peek(1) == '*') {
      refuse(pos_, fmt::format("group {}", pattern_.substr(pos_, 4)));
    }
    ++pos_;
    out_ += '(';
  }

  std::optional<int> take_number() {
    int value = 0;
    size_t digits = 0;
    for (; peek() >= '0' && peek() <= '9'; ++pos_, ++digits) {
      if (digits == 5) return std::nullopt;
      value = value * 10 + (peek() - '0');
    }
    if (digits == 0) return std::nullopt;
    return value;
  }

  // {n}, {n,}, {,m}, {n,m}; anything else is a literal brace, in Ruby's syntax as in PCRE2.
  void interval() {
    const size_t start = pos_++;
    const std::optional<int> low = take_number();
    const bool comma = take(",");
    const std::optional<int> high = comma ? take_number() : std::nullopt;
    if ((!low && !high) || !take("}")) {
      pos_ = start + 1;
      out_ += escaped('{');
      return;
    }
    if (peek() == '+') refuse(pos_, "a + behind an interval");
    if (peek() == '?' && low && !comma) refuse(pos_, "a ? behind {n}");
    out_ += fmt::format("{{{}", low.value_or(0));
    if (comma) out_ += ",";
    if (high) out_ += std::to_string(*high);
    out_ += "}";
  }

  // \p{..}, \s, \d, \h and their negations, if one stands here.
  std::optional<Set> take_set_escape() {
    const size_t start = pos_;
    const char letter = peek(1);
    const bool upper = letter >= 'A' && letter <= 'Z';
    switch (letter) {
      case 's':
      case 'S':
        pos_ += 2;
        return listed(white_space(), upper);
      case 'd':
      case 'D':
        pos_ += 2;
        return property("Nd", upper, start);
      case 'h':
      case 'H':
        pos_ += 2;
        return listed(kHexDigits, upper);
      case 'p':
      case 'P':
        break;
      default:
        return std::nullopt;
    }
    const size_t close = pattern_.find('}', pos_);
    if (peek(2) != '{' || close == std::string_view::npos) {
      refuse_malformed(start, "\\p without {name}");
    }
    std::string_view name = pattern_.substr(pos_ + 3, close - pos_ - 3);
    const bool caret = name.starts_with('^');
    if (caret) name.remove_prefix(1);
    pos_ = close + 1;
    return property(name, upper != caret, start);
  }

  static Set listed(std::span<const CodePointRange> ranges, bool negated) {
    const CodePointSet set(ranges.begin(), ranges.end());
    return {set, written_out(set), negated};
  }

  Set property(std::string_view name, bool negated, size_t at) const {
    if (const auto letters = script(name)) return {*letters, written_out(*letters), negated};
    const auto wanted = general_category(name, UnicodeVersion::k16_0);
    if (!wanted) refuse(at, fmt::format("property {}", name.substr(0, 40)));
    const std::string own = fmt::format("\\p{{{}}}", name);
    if (properties_ == PcreProperties::kUnicode16) return {*wanted, own, negated};
    if (properties_ == PcreProperties::kUnicode14) {
      const auto had = *general_category(name, UnicodeVersion::k14_0);
      if (difference(had, *wanted).empty()) {
        return {*wanted, own + written_out(difference(*wanted, had)), negated};
      }
    }
    return {*wanted, written_out(without_surrogates(*wanted)), negated};
  }

  // A character written as an escape, after whose backslash pos_ stands.
  uint32_t take_character_escape(size_t start) {
    const uint32_t c = take_code_point();
    switch (c) {
      case 't':
        return '\t';
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'a':
        return '\a';
      case 'e':
        return 0x1B;
      case 'x':
        return take_hex_escape(start);
      case 'u':
        return take_hex(4, 4, start);
      default:
        break;
    }
    if (is_ascii_letter_or_digit(c)) {
      refuse(start, fmt::format("escape {}", pattern_.substr(start, 2)));
    }
    return c;
  }

  uint32_t take_hex_escape(size_t start) {
    if (take("{")) {
      const uint32_t value = take_hex(1, 8, start);
      if (!take("}")) refuse_malformed(start, "\\x{ without }");
      return value;
    }
    const uint32_t value = take_hex(1, 2, start);
    if (value >= 0x80) refuse(start, "a raw byte");  // in Oniguruma \xE4 is a byte of UTF-8
    return value;
  }

  uint32_t take_hex(size_t digits_min, size_t digits_max, size_t start) {
    uint32_t value = 0;
    size_t digits = 0;
    for (; digits < digits_max; ++digits, ++pos_) {
      const char c = peek();
      if (c >= '0' && c <= '9') {
        value = value * 16 + static_cast<uint32_t>(c - '0');
      } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
        value = value * 16 + static_cast<uint32_t>((c | 0x20) - 'a' + 10);
      } else {
        break;
      }
    }
    if (digits < digits_min) refuse_malformed(start, "escape with too few hexadecimal digits");
    if (value > kCodePointMax || (value >= 0xD800 && value <= 0xDFFF)) {
      refuse_malformed(start, "escape of what is no character");
    }
    return value;
  }

  void escape_outside_class() {
    const size_t start = pos_;
    if (const auto set = take_set_escape()) {
      out_ += (set->negated ? "[^" : "[") + set->members + "]";
      return;
    }
    for (std::string_view anchor : {"\\A", "\\z", "\\Z"}) {
      if (take(anchor)) {
        out_ += anchor;
        return;
      }
    }
    ++pos_;
    if (at_end()) refuse_malformed(start, "backslash without a character");
    out_ += escaped(take_character_escape(start));
  }

  void character_class() {
    if (is_computed_class()) {
      const CodePointSet set = class_set();
      out_ += set.empty() ? "(?!)" : "[" + written_out(set) + "]";
      return;
    }
    const size_t start = pos_++;
    out_ += take("^") ? "[^" : "[";
    bool empty = true;
    for (; peek() != ']' || empty; empty = false) {
      if (at_end()) refuse_malformed(start, "character class without ]");
      class_item(start);
    }
    ++pos_;
    out_ += "]";
  }

  void class_item(size_t class_start) {
    if (peek() == '\\') {
      if (const auto set = take_set_escape()) {
        // Inside brackets a negated set is written out: PCRE2's own would use its own tables.
        out_ += set->negated ? written_out(complement(set->code_points)) : set->members;
        if (peek() == '-' && peek(1) != ']') refuse(pos_, "a range from a set");
        return;
      }
    }
    const uint32_t first = take_class_character(class_start);
    if (peek() != '-' || peek(1) == ']' || peek(1) == '\0') {
      out_ += escaped(first);
      return;
    }
    const size_t dash = pos_++;
    if (peek() == '\\' && take_set_escape()) refuse(dash, "a range to a set");
    const uint32_t last = take_class_character(class_start);
    if (last < first) refuse_malformed(dash, "range in descending order");
    // A range over the surrogates means the characters on both sides of them.
    out_ += written_out(without_surrogates({{first, last}}));
  }

  // Whether the class that begins here holds && or another class: PCRE2 has neither.
  bool is_computed_class() const {
    bool first = true;
    for (size_t at = pos_ + (peek(1) == '^' ? 2 : 1); at < pattern_.size(); ++at, first = false) {
      const char c = pattern_[at];
      if (c == '\\') {
        ++at;
      } else if (c == '[' || (c == '&' && at + 1 < pattern_.size() && pattern_[at + 1] == '&')) {
        return true;
      } else if (c == ']' && !first) {
        return false;
      }
    }
    return false;
  }

  // The characters of the class that begins here: what stands between && is intersected, classes
  // within it are a part of it. A ^ at its beginning is about all of it (Onigmo's doc/RE, "A-5").
  CodePointSet class_set() {
    const size_t start = pos_++;
    if (++class_depth_ > kClassDepthMax) refuse(start, "a class nested this deep");
    const bool negated = take("^");
    std::optional<CodePointSet> all;
    CodePointSet part;
    const auto close_part = [&] {
      part = without_surrogates(united(std::move(part)));
      all = all ? intersection(*all, part) : part;
      part.clear();
    };
    for (bool empty = true; peek() != ']' || empty; empty = false) {
      if (at_end()) refuse_malformed(start, "character class without ]");
      if (peek() == '[' && peek(1) == ':') refuse(pos_, "a class by name");
      if (take("&&")) {
        close_part();
      } else if (peek() == '[') {
        const CodePointSet inner = class_set();
        part.insert(part.end(), inner.begin(), inner.end());
      } else {
        add_set_item(start, part);
      }
    }
    ++pos_;
    --class_depth_;
    close_part();
    return negated ? complement(*all) : *all;
  }

  void add_set_item(size_t class_start, CodePointSet& part) {
    if (peek() == '\\') {
      if (const auto set = take_set_escape()) {
        const CodePointSet members =
            set->negated ? complement(set->code_points) : without_surrogates(set->code_points);
        part.insert(part.end(), members.begin(), members.end());
        return;
      }
    }
    const uint32_t first = take_class_character(class_start);
    uint32_t last = first;
    if (peek() == '-' && peek(1) != ']' && peek(1) != '\0') {
      const size_t dash = pos_++;
      if (peek() == '[' || (peek() == '\\' && take_set_escape())) refuse(dash, "a range to a set");
      last = take_class_character(class_start);
      if (last < first) refuse_malformed(dash, "range in descending order");
    }
    part.push_back({first, last});
  }

  uint32_t take_class_character(size_t class_start) {
    const size_t start = pos_;
    if (at_end()) refuse_malformed(class_start, "character class without ]");
    if (peek() != '\\') return take_code_point();
    ++pos_;
    if (at_end()) refuse_malformed(class_start, "character class without ]");
    if (peek() == 'b') {
      ++pos_;
      return '\b';
    }
    return take_character_escape(start);
  }

  std::string_view pattern_;
  PcreProperties properties_;
  size_t pos_ = 0;
  int class_depth_ = 0;
  std::string out_;
};

}  // namespace

std::string translate_pattern(std::string_view pattern, PcreProperties properties) {
  return Translator(pattern, properties).run();
}

}  // namespace atl::text
