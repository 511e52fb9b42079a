#include "constrain/json_text_grammar.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <memory>
#include <tuple>

#include "text/utf8.h"

namespace atl::constrain {
namespace {

using Node = GrammarBuilder::Node;

constexpr int kDigitsMax = 15;  // every double keeps that many

// --- UTF-8 ---

void add_utf8_bytes(GrammarBuilder& grammar, Node from, uint32_t low, uint32_t high, Node to) {
  std::string first, last;
  text::append_utf8(low, first);
  text::append_utf8(high, last);
  for (size_t i = 0; i < first.size(); ++i) {
    const Node next = i + 1 == first.size() ? to : grammar.node();
    grammar.bytes(from, static_cast<uint8_t>(first[i]), static_cast<uint8_t>(last[i]), next);
    from = next;
  }
}

// Splits the range until each part is a product of byte ranges.
// Source: the method of the utf8-ranges library, after Russ Cox.
void add_utf8_range(GrammarBuilder& grammar, Node from, uint32_t low, uint32_t high, Node to) {
  for (uint32_t end : {0x7Fu, 0x7FFu, 0xFFFFu}) {
    if (low <= end && high > end) {
      add_utf8_range(grammar, from, low, end, to);
      return add_utf8_range(grammar, from, end + 1, high, to);
    }
  }
  const int num_bytes = high <= 0x7F ? 1 : high <= 0x7FF ? 2 : high <= 0xFFFF ? 3 : 4;
  for (int i = 1; i < num_bytes; ++i) {
    const uint32_t mask = (1u << (6 * i)) - 1;
    if ((low & ~mask) == (high & ~mask)) continue;
    if ((low & mask) != 0) {
      add_utf8_range(grammar, from, low, low | mask, to);
      return add_utf8_range(grammar, from, (low | mask) + 1, high, to);
    }
    if ((high & mask) != mask) {
      add_utf8_range(grammar, from, low, (high & ~mask) - 1, to);
      return add_utf8_range(grammar, from, high & ~mask, high, to);
    }
  }
  add_utf8_bytes(grammar, from, low, high, to);
}

bool needs_escape(uint32_t c) { return c < 0x20 || c == '"' || c == '\\'; }

// The letter of the short escape, or 0.
char short_escape(uint32_t c) {
  switch (c) {
    case '"':
      return '"';
    case '\\':
      return '\\';
    case '\b':
      return 'b';
    case '\f':
      return 'f';
    case '\n':
      return 'n';
    case '\r':
      return 'r';
    case '\t':
      return 't';
    default:
      return 0;
  }
}

std::string escaped(uint32_t c) {
  const char letter = short_escape(c);
  return letter != 0 ? std::string{'\\', letter} : fmt::format("\\u{:04x}", c);
}

// The escapes of those code points of the set that need one.
void add_escapes(GrammarBuilder& grammar, Node from, const CodePoints& set, Node to) {
  Node escape = -1, digits[2] = {-1, -1};
  for (auto [low, high] : set) {
    for (uint32_t c = low; c <= std::min<uint32_t>(high, '\\'); ++c) {
      if (!needs_escape(c)) continue;
      if (escape < 0) escape = grammar.literal(from, "\\");
      const char letter = short_escape(c);
      if (letter != 0) {
        grammar.byte(escape, letter, to);
        continue;
      }
      Node& last = digits[c >> 4];
      if (last < 0) last = grammar.literal(escape, c < 0x10 ? "u000" : "u001");
      grammar.byte(last, "0123456789abcdef"[c & 15], to);
    }
  }
}

void join(GrammarBuilder& grammar, Node from, std::string_view text, Node to) {
  grammar.empty(grammar.literal(from, text), to);
}

// --- \u escapes ---

void add_hex(GrammarBuilder& grammar, Node from, std::string_view digits, Node to) {
  for (char c : digits) grammar.byte(from, c, to);
}

Node add_any_hex(GrammarBuilder& grammar, Node from, int count) {
  for (int i = 0; i < count; ++i) {
    const Node to = grammar.node();
    add_hex(grammar, from, "0123456789abcdefABCDEF", to);
    from = to;
  }
  return from;
}

void add_unicode_escape(GrammarBuilder& grammar, Node from, Node to) {
  const Node plain = grammar.node(), d = grammar.node(), low = grammar.node(),
             high = grammar.node();
  add_hex(grammar, from, "0123456789abcABCefEF", plain);
  grammar.empty(add_any_hex(grammar, plain, 3), to);
  add_hex(grammar, from, "dD", d);
  add_hex(grammar, d, "01234567", low);
  grammar.empty(add_any_hex(grammar, low, 2), to);
  add_hex(grammar, d, "89abAB", high);
  const Node second = grammar.literal(add_any_hex(grammar, high, 2), "\\u");
  const Node second_d = grammar.node(), second_low = grammar.node();
  add_hex(grammar, second, "dD", second_d);
  add_hex(grammar, second_d, "cdefCDEF", second_low);
  grammar.empty(add_any_hex(grammar, second_low, 2), to);
}

// --- patterns ---

Node add_parsed(GrammarBuilder& grammar, Node from, const Pattern& pattern) {
  grammar.work().spend(1, "a pattern");
  switch (pattern.kind) {
    case Pattern::Kind::kSet: {
      const Node to = grammar.node();
      add_character(grammar, from, pattern.set, to);
      return to;
    }
    case Pattern::Kind::kSequence:
      for (const Pattern& part : pattern.parts) from = add_parsed(grammar, from, part);
      return from;
    case Pattern::Kind::kChoice: {
      const Node to = grammar.node();
      for (const Pattern& part : pattern.parts) grammar.empty(add_parsed(grammar, from, part), to);
      return to;
    }
    case Pattern::Kind::kRepeat:
      break;
  }
  for (int64_t i = 0; i < pattern.min; ++i) from = add_parsed(grammar, from, pattern.parts[0]);
  const Node to = grammar.node();
  grammar.empty(from, to);
  if (pattern.max < 0) {
    // A round trip of its own, so that what comes before isn't entered again.
    const Node begin = grammar.node();
    grammar.empty(from, begin);
    const Node end = add_parsed(grammar, begin, pattern.parts[0]);
    grammar.empty(end, begin);
    grammar.empty(end, to);
    return to;
  }
  for (int64_t i = pattern.min; i < pattern.max; ++i) {
    from = add_parsed(grammar, from, pattern.parts[0]);
    grammar.empty(from, to);
  }
  return to;
}

// --- numbers ---

// Numbers >= 0 between two bounds, digit by digit: a state knows whether the digits so far are
// those of the low bound, of the high bound, and the remainder of the integer so far. Integers that
// have left both bounds go on alike, however long they were to be: what counts is how many digits
// are still to come.
class DigitsBetween {
 public:
  DigitsBetween(GrammarBuilder& grammar, Node to, DecimalBound low, DecimalBound high,
                const NumberRange& range)
      : grammar_(grammar), to_(to), low_(std::move(low)), high_(std::move(high)), range_(range) {}

  void add(Node from) {
    for (size_t length = low_.whole.size(); length <= high_.whole.size(); ++length) {
      length_ = length;
      if (!range_.integer) nodes_.clear();
      whole(from, {0, length == low_.whole.size(), length == high_.whole.size(), 0});
    }
  }

 private:
  struct At {
    // Of the whole part and then of the fraction; in the key of an integer: still to come.
    size_t digits = 0;
    bool is_low = false, is_high = false;
    int32_t remainder = 0;
    auto operator<=>(const At&) const = default;
  };

  int digit_of(const DecimalBound& bound, size_t index) const {
    if (index < length_) return bound.whole[index] - '0';
    const size_t at = index - length_;
    return at < bound.fraction.size() ? bound.fraction[at] - '0' : 0;
  }

  void digits(Node from, const At& at, bool in_fraction) {
    for (int d = at.digits == 0 && length_ > 1 ? 1 : 0; d <= 9; ++d) {
      if (at.is_low && d < digit_of(low_, at.digits)) continue;
      if (at.is_high && d > digit_of(high_, at.digits)) continue;
      const At next{at.digits + 1, at.is_low && d == digit_of(low_, at.digits),
                    at.is_high && d == digit_of(high_, at.digits),
                    (at.remainder * 10 + d) % range_.multiple_of};
      At key = next;
      if (range_.integer) key.digits = length_ - next.digits;
      const auto [known, is_new] = nodes_.emplace(key, 0);
      if (is_new) known->second = grammar_.node();
      const Node to = known->second;
      grammar_.byte(from, static_cast<char>('0' + d), to);
      if (!is_new) continue;
      in_fraction ? fraction(to, next) : whole(to, next);
    }
  }

  void whole(Node from, const At& at) {
    if (at.digits < length_) return digits(from, at, false);
    if (may_end(at)) grammar_.empty(from, to_);
    if (range_.integer || length_ >= kDigitsMax) return;
    if (range_.fraction_digits_max == 0) return;
    const Node point = grammar_.node();
    grammar_.byte(from, '.', point);
    digits(point, at, true);
  }

  void fraction(Node from, const At& at) {
    if (may_end(at)) grammar_.empty(from, to_);
    const bool more = range_.fraction_digits_max < 0 ||
                      at.digits < length_ + static_cast<size_t>(range_.fraction_digits_max);
    if (more && at.digits < kDigitsMax) digits(from, at, true);
  }

  bool rest_is_zero(const DecimalBound& bound, size_t index) const {
    const size_t at = index - length_;
    return at >= bound.fraction.size() ||
           bound.fraction.find_first_not_of('0', at) == std::string::npos;
  }

  bool may_end(const At& at) const {
    int64_t remainder = at.remainder;  // of the digits with zeros behind them
    for (int i = static_cast<int>(at.digits - length_); i < range_.fraction_digits_max; ++i) {
      remainder = remainder * 10 % range_.multiple_of;
    }
    if (remainder != 0) return false;
    if (at.is_low && (low_.exclusive || !rest_is_zero(low_, at.digits))) return false;
    return !(at.is_high && high_.exclusive && rest_is_zero(high_, at.digits));
  }

  GrammarBuilder& grammar_;
  const Node to_;
  const DecimalBound low_, high_;
  const NumberRange& range_;
  size_t length_ = 0;
  std::map<At, Node> nodes_;
};

bool is_zero(const DecimalBound& bound) {
  return bound.whole == "0" && bound.fraction.find_first_not_of('0') == std::string::npos;
}

void add_usual_number(GrammarBuilder& grammar, Node from, Node to) {
  const Node start = grammar.node();
  grammar.empty(from, start);
  grammar.byte(from, '-', start);
  // Digits are counted over both parts: ends[n] is behind the n-th.
  std::vector<Node> whole, fraction;
  for (int i = 0; i <= kDigitsMax; ++i) {
    whole.push_back(grammar.node());
    fraction.push_back(grammar.node());
  }
  const Node exponent = grammar.node(), zero = grammar.node();
  grammar.byte(start, '0', zero);
  grammar.bytes(start, '1', '9', whole[1]);
  const auto ends = [&](Node node) {
    grammar.empty(node, to);
    grammar.byte(node, 'e', exponent);
    grammar.byte(node, 'E', exponent);
  };
  const auto point = [&](Node node, int digits) {
    if (digits >= kDigitsMax) return;
    const Node behind = grammar.node();
    grammar.byte(node, '.', behind);
    grammar.bytes(behind, '0', '9', fraction[static_cast<size_t>(digits) + 1]);
  };
  ends(zero);
  point(zero, 1);
  for (int i = 1; i <= kDigitsMax; ++i) {
    const auto n = static_cast<size_t>(i);
    ends(whole[n]);
    point(whole[n], i);
    ends(fraction[n]);
    if (i == kDigitsMax) continue;
    grammar.bytes(whole[n], '0', '9', whole[n + 1]);
    grammar.bytes(fraction[n], '0', '9', fraction[n + 1]);
  }
  const Node sign = grammar.node(), first = grammar.node();
  grammar.empty(exponent, sign);
  grammar.byte(exponent, '+', sign);
  grammar.byte(exponent, '-', sign);
  grammar.bytes(sign, '0', '9', first);
  grammar.empty(first, to);
  grammar.bytes(first, '0', '9', to);
}

void add_usual_integer(GrammarBuilder& grammar, Node from, Node to) {
  NumberRange range;
  range.integer = true;
  range.low.negative = true;
  range.low.whole = range.high.whole = std::string(kDigitsMax, '9');
  add_number(grammar, from, range, to);
}

// --- any value ---

void add_any_object(GrammarBuilder& grammar, const JsonRules& rules) {
  const auto [start, accept] = grammar.rule(rules.object);
  const Node inside = grammar.literal(start, "{");
  const Node key = grammar.node(), named = grammar.node(), valued = grammar.node();
  grammar.byte(inside, '}', accept);
  grammar.empty(inside, key);
  grammar.call(key, rules.string, named);
  grammar.call(add_separator(grammar, named, ':'), rules.value, valued);
  grammar.empty(add_separator(grammar, valued, ','), key);
  grammar.byte(valued, '}', accept);
}

void add_any_array(GrammarBuilder& grammar, const JsonRules& rules) {
  const auto [start, accept] = grammar.rule(rules.array);
  const Node inside = grammar.literal(start, "[");
  const Node item = grammar.node(), valued = grammar.node();
  grammar.byte(inside, ']', accept);
  grammar.empty(inside, item);
  grammar.call(item, rules.value, valued);
  grammar.empty(add_separator(grammar, valued, ','), item);
  grammar.byte(valued, ']', accept);
}

}  // namespace

void add_character(GrammarBuilder& grammar, Node from, const CodePoints& set, Node to) {
  const CodePoints all = normalised(set);
  add_escapes(grammar, from, all, to);
  // What stands for itself: all but control characters, '"' and '\\'.
  static constexpr std::pair<uint32_t, uint32_t> kPlain[] = {
      {0x20, 0x21}, {0x23, 0x5B}, {0x5D, kLastCodePoint}};
  for (const auto& [low, high] : all) {
    for (const auto& [first, last] : kPlain) {
      const uint32_t begin = std::max(low, first), end = std::min(high, last);
      if (begin <= end) add_utf8_range(grammar, from, begin, end, to);
    }
  }
}

void add_plain_character(GrammarBuilder& grammar, Node from, const CodePoints& set, Node to) {
  for (const auto& [low, high] : normalised(set)) add_utf8_range(grammar, from, low, high, to);
}

void add_any_character(GrammarBuilder& grammar, Node from, Node to) {
  for (const auto& [low, high] : normalised({{0x20, 0x21}, {0x23, 0x5B}, {0x5D, kLastCodePoint}})) {
    add_utf8_range(grammar, from, low, high, to);
  }
  const Node escape = grammar.node(), unicode = grammar.node();
  grammar.byte(from, '\\', escape);
  for (char c : std::string_view("\"\\/bfnrt")) grammar.byte(escape, c, to);
  grammar.byte(escape, 'u', unicode);
  add_unicode_escape(grammar, unicode, to);
}

std::string string_text(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const text::Utf8Unit unit = text::next_utf8_unit(text);
    out += needs_escape(unit.code_point) ? escaped(unit.code_point)
                                         : std::string(text.substr(0, unit.num_bytes));
    text.remove_prefix(unit.num_bytes);
  }
  return out;
}

Result<Node> add_pattern(GrammarBuilder& grammar, Node from, std::string_view pattern) {
  auto parsed = parse_pattern(pattern);
  if (!parsed) return parsed.error();
  if (!parsed->ahead.empty()) return Error{ErrorCode::kUnsupported, "pattern: looking ahead"};
  return add_parsed(grammar, from, parsed->body);
}

void add_number(GrammarBuilder& grammar, Node from, const NumberRange& range, Node to) {
  const DecimalBound zero;
  const bool has_negatives = range.low.negative && !is_zero(range.low);
  if (!range.high.negative || is_zero(range.high)) {
    const bool from_zero = range.low.negative || is_zero(range.low);
    DecimalBound low = from_zero ? zero : range.low;
    low.exclusive = is_zero(range.low) ? range.low.exclusive : !from_zero && range.low.exclusive;
    DecimalBound high = range.high;
    high.negative = false;
    DigitsBetween(grammar, to, low, high, range).add(from);
  }
  if (!has_negatives) return;
  // -x lies between low and high if x lies between -high and -low; -0 is left out.
  DecimalBound low = range.high.negative ? range.high : zero;
  if (is_zero(low)) low.exclusive = true;
  const Node behind = grammar.node();
  grammar.byte(from, '-', behind);
  DigitsBetween(grammar, to, low, range.low, range).add(behind);
}

JsonRules add_json_rules(GrammarBuilder& grammar) {
  JsonRules rules;
  rules.string = grammar.add_rule();
  rules.number = grammar.add_rule();
  rules.integer = grammar.add_rule();
  rules.value = grammar.add_rule();
  rules.object = grammar.add_rule();
  rules.array = grammar.add_rule();

  rules.string_inside = grammar.literal(grammar.rule(rules.string).start, "\"");
  add_any_character(grammar, rules.string_inside, rules.string_inside);
  grammar.byte(rules.string_inside, '"', grammar.rule(rules.string).accept);

  const auto number = grammar.rule(rules.number), integer = grammar.rule(rules.integer);
  add_usual_number(grammar, number.start, number.accept);
  add_usual_integer(grammar, integer.start, integer.accept);
  add_any_object(grammar, rules);
  add_any_array(grammar, rules);

  const auto [start, accept] = grammar.rule(rules.value);
  for (int32_t rule : {rules.string, rules.number, rules.object, rules.array}) {
    grammar.call(start, rule, accept);
  }
  for (std::string_view word : {"true", "false", "null"}) join(grammar, start, word, accept);
  return rules;
}

Node add_separator(GrammarBuilder& grammar, Node from, char mark) {
  const Node behind = grammar.node(), spaced = grammar.node();
  grammar.byte(from, mark, behind);
  grammar.empty(behind, spaced);
  grammar.byte(behind, ' ', spaced);
  return spaced;
}

}  // namespace atl::constrain
