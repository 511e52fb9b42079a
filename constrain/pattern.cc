#include "constrain/pattern.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <string>

#include "base/check.h"
#include "text/utf8.h"

namespace atl::constrain {
namespace {

constexpr int64_t kRepeatMax = 1000;
constexpr int kPatternDepthMax = 50;

const CodePoints kDigit = {{'0', '9'}};
const CodePoints kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CodePoints kSpace = {{0x09, 0x0D},     {0x20, 0x20},     {0xA0, 0xA0},     {0x1680, 0x1680},
                           {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                           {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
const CodePoints kAll = {{0, kLastCodePoint}};
const CodePoints kLineEnds = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

// Syntax: ECMA-262, the part that is regular.
class PatternParser {
 public:
  explicit PatternParser(std::string_view text) : text_(text) {}

  // The alternatives at the top, padded where they have no anchor.
  ParsedPattern run() {
    ParsedPattern out;
    const size_t begin = at_;
    if (take('^')) {
      while (look_ahead(out)) {
      }
    }
    if (out.ahead.empty()) {
      at_ = begin;
    } else {
      at_ -= 1;  // again a '^' in front of what follows
      text_copy_ = std::string(text_);
      text_copy_[at_] = '^';
      text_ = text_copy_;
    }
    out.body = alternatives();
    if (!out.ahead.empty() && out.body.parts.size() > 1) fail("looking ahead beside '|'");
    return out;
  }

 private:
  // (?=...) and (?!...), with or without $ at its end.
  bool look_ahead(ParsedPattern& out) {
    const std::string_view rest = text_.substr(at_);
    const bool negative = rest.starts_with("(?!");
    if (!negative && !rest.starts_with("(?=")) return false;
    at_ += 3;
    take('^');  // where it looks from anyway
    Pattern whole{Pattern::Kind::kSequence, {}, {}, 0, -1};
    whole.parts.push_back(choice());
    if (!take('$')) whole.parts.push_back(anything());
    if (!take(')')) fail("an anchor inside a group, or a missing ')',");
    out.ahead.push_back({std::move(whole), negative});
    return true;
  }

  Pattern alternatives() {
    Pattern out{Pattern::Kind::kChoice, {}, {}, 0, -1};
    do {
      const bool begins = take('^');
      Pattern part = sequence();
      const bool has_tail = at_tail();
      if (has_tail) part.parts.push_back(tail());
      const bool ends = take('$') || has_tail;
      if (!at_end() && text_[at_] != '|') fail("here");
      Pattern padded{Pattern::Kind::kSequence, {}, {}, 0, -1};
      if (!begins) padded.parts.push_back(anything());
      padded.parts.push_back(std::move(part));
      if (!ends) padded.parts.push_back(anything());
      out.parts.push_back(std::move(padded));
    } while (take('|'));
    if (!at_end()) fail("here");
    return out;
  }

  static Pattern anything() {
    Pattern out{Pattern::Kind::kRepeat, {}, {}, 0, -1};
    out.parts.push_back({Pattern::Kind::kSet, kAll, {}, 0, -1});
    return out;
  }

  // Whether a group follows that a top alternative ends with, and that says itself where it ends:
  // with $, or looking ahead.
  bool at_tail() const {
    if (at_end() || text_[at_] != '(' || depth_ > 0) return false;
    int depth = 0;
    bool in_class = false, says_end = false;
    for (size_t i = at_; i < text_.size(); ++i) {
      const char c = text_[i];
      if (c == '\\') {
        ++i;
      } else if (in_class) {
        in_class = c != ']';
      } else if (c == '[') {
        in_class = true;
      } else if (c == '(') {
        ++depth;
      } else if (c == '$') {
        says_end = true;
      } else if (c == ')' && --depth == 0) {
        return says_end && (i + 1 == text_.size() || text_[i + 1] == '|');
      }
    }
    return false;
  }

  // Its alternatives, padded. One that looks ahead is left out where another is any text.
  Pattern tail() {
    CHECK(take('('));
    if (take('?') && !take(':')) fail("looking ahead");
    ++depth_;
    Pattern out{Pattern::Kind::kChoice, {}, {}, 0, -1};
    bool looks_ahead = false, is_any = false;
    do {
      ParsedPattern ahead;
      while (look_ahead(ahead)) looks_ahead = true;
      Pattern part = sequence();
      if (!take('$')) {
        is_any = is_any || (ahead.ahead.empty() && may_be_empty(part));
        part.parts.push_back(anything());
      }
      out.parts.push_back(std::move(part));
    } while (take('|'));
    if (!take(')')) fail("an anchor inside a group, or a missing ')',");
    --depth_;
    if (is_any) return anything();
    if (looks_ahead) fail("looking ahead inside a group");
    return out;
  }

  static bool may_be_empty(const Pattern& pattern) {
    const auto empty = [](const Pattern& part) { return may_be_empty(part); };
    switch (pattern.kind) {
      case Pattern::Kind::kSet:
        return false;
      case Pattern::Kind::kSequence:
        return std::all_of(pattern.parts.begin(), pattern.parts.end(), empty);
      case Pattern::Kind::kChoice:
        return std::any_of(pattern.parts.begin(), pattern.parts.end(), empty);
      case Pattern::Kind::kRepeat:
        return pattern.min == 0 || empty(pattern.parts.front());
    }
    return false;
  }

  bool at_end() const { return at_ == text_.size(); }
  bool take(char c) {
    if (at_end() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  [[noreturn]] void fail(std::string_view what) const {
    throw Error{
        ErrorCode::kInvalid,
        fmt::format("pattern: {} at character {} is not supported", what,
                    at_ < text_.size() ? fmt::format("'{}'", text_.substr(at_, 6)) : "the end")};
  }

  Pattern choice() {
    Pattern out{Pattern::Kind::kChoice, {}, {}, 0, -1};
    do {
      out.parts.push_back(sequence());
    } while (take('|'));
    return out;
  }

  Pattern sequence() {
    Pattern out{Pattern::Kind::kSequence, {}, {}, 0, -1};
    while (!at_end() && text_[at_] != '|' && text_[at_] != ')' && text_[at_] != '$' && !at_tail()) {
      out.parts.push_back(quantified(atom()));
    }
    return out;
  }

  Pattern quantified(Pattern of) {
    for (int depth = depth_ + 1;; ++depth) {
      int64_t min = 0, max = -1;
      if (take('?')) {
        max = 1;
      } else if (take('+')) {
        min = 1;
      } else if (!take('*') && !braces(min, max)) {
        return of;
      }
      take('?');  // lazy or not is the same set of strings
      Pattern out{Pattern::Kind::kRepeat, {}, {}, min, max};
      out.parts.push_back(std::move(of));
      of = std::move(out);
      if (depth > kPatternDepthMax) fail("nesting this deep");
    }
  }

  bool braces(int64_t& min, int64_t& max) {
    if (at_end() || text_[at_] != '{') return false;
    ++at_;
    min = number();
    max = min;
    if (take(',')) max = !at_end() && text_[at_] != '}' ? number() : -1;
    if (!take('}') || (max >= 0 && max < min)) fail("this quantifier");
    return true;
  }

  int64_t number() {
    int64_t value = -1;
    while (!at_end() && text_[at_] >= '0' && text_[at_] <= '9') {
      value = std::max<int64_t>(value, 0) * 10 + (text_[at_++] - '0');
      if (value > kRepeatMax) fail("a repetition of more than 1000");
    }
    if (value < 0) fail("this quantifier");
    return value;
  }

  Pattern atom() {
    if (take('(')) return group();
    if (take('[')) return {Pattern::Kind::kSet, char_class(), {}, 0, -1};
    if (take('.')) return {Pattern::Kind::kSet, complement(kLineEnds), {}, 0, -1};
    if (take('\\')) return {Pattern::Kind::kSet, escape(), {}, 0, -1};
    if (std::string_view("*+?{}])^$").find(text_[at_]) != std::string_view::npos) fail("this");
    return {Pattern::Kind::kSet, single(code_point()), {}, 0, -1};
  }

  Pattern group() {
    if (++depth_ > kPatternDepthMax) fail("nesting this deep");
    if (take('?')) {
      if (take('<')) {
        if (at_end() || text_[at_] == '=' || text_[at_] == '!') fail("looking behind");
        while (!at_end() && !take('>')) ++at_;
      } else if (!take(':')) {
        fail("looking ahead");
      }
    }
    Pattern out = choice();
    if (!take(')')) fail("an anchor inside a group, or a missing ')',");
    --depth_;
    return out;
  }

  static CodePoints single(uint32_t c) { return {{c, c}}; }

  uint32_t code_point() {
    const text::Utf8Unit unit = text::next_utf8_unit(text_.substr(at_));
    at_ += unit.num_bytes;
    return unit.code_point;
  }

  CodePoints escape() {
    if (at_end()) fail("a backslash");
    const char c = text_[at_];
    const size_t begin = at_++;
    switch (c) {
      case 'd':
        return kDigit;
      case 'D':
        return complement(kDigit);
      case 'w':
        return kWord;
      case 'W':
        return complement(kWord);
      case 's':
        return kSpace;
      case 'S':
        return complement(kSpace);
      case 'n':
        return single('\n');
      case 'r':
        return single('\r');
      case 't':
        return single('\t');
      case 'f':
        return single('\f');
      case 'v':
        return single('\v');
      case 'x':
        return single(hex(2));
      case 'u':
        return single(hex(4));
      default:
        break;
    }
    at_ = begin;
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) {
      fail("this escape");
    }
    return single(code_point());
  }

  uint32_t hex(size_t digits) {
    uint32_t value = 0;
    const std::string_view part = text_.substr(at_, digits);
    const auto read = std::from_chars(part.data(), part.data() + part.size(), value, 16);
    if (part.size() != digits || read.ptr != part.data() + digits) fail("this escape");
    if (value >= 0xD800 && value <= 0xDFFF) fail("half of a surrogate pair");
    at_ += digits;
    return value;
  }

  CodePoints char_class() {
    const bool negated = take('^');
    CodePoints set;
    while (!take(']')) {
      if (at_end()) fail("a class without ']'");
      const CodePoints low = class_member();
      const bool is_range = at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']';
      if (!is_range) {
        set.insert(set.end(), low.begin(), low.end());
        continue;
      }
      ++at_;
      const CodePoints high = class_member();
      const bool single_ends = low.size() == 1 && high.size() == 1 &&
                               low[0].first == low[0].second && high[0].first == high[0].second;
      if (!single_ends || low[0].first > high[0].first) fail("this range");
      set.emplace_back(low[0].first, high[0].first);
    }
    return negated ? complement(set) : normalised(std::move(set));
  }

  CodePoints class_member() {
    if (take('\\')) {
      if (take('b')) return single('\b');
      return escape();
    }
    if (at_end()) fail("a class without ']'");
    return single(code_point());
  }

  std::string_view text_;
  std::string text_copy_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

CodePoints normalised(CodePoints ranges) {
  std::sort(ranges.begin(), ranges.end());
  CodePoints merged;
  for (const auto& [low, high] : ranges) {
    if (!merged.empty() && low <= merged.back().second + 1) {
      merged.back().second = std::max(merged.back().second, high);
    } else {
      merged.emplace_back(low, high);
    }
  }
  CodePoints out;  // without the surrogates, which UTF-8 doesn't have
  for (const auto& [low, high] : merged) {
    if (low < 0xD800) out.emplace_back(low, std::min(high, 0xD7FFu));
    if (high > 0xDFFF) out.emplace_back(std::max(low, 0xE000u), high);
  }
  return out;
}

CodePoints complement(const CodePoints& ranges) {
  CodePoints out;
  uint32_t next = 0;
  for (const auto& [low, high] : normalised(ranges)) {
    if (low > next) out.emplace_back(next, low - 1);
    next = high + 1;
  }
  if (next <= kLastCodePoint) out.emplace_back(next, kLastCodePoint);
  return normalised(std::move(out));
}

Result<ParsedPattern> parse_pattern(std::string_view text) {
  try {
    return PatternParser(text).run();
  } catch (const Error& error) {
    return error;
  }
}

}  // namespace atl::constrain
