#include "text/jinja/lexer.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "text/utf8.h"

namespace atl::text::jinja {
namespace {

constexpr std::string_view kWhiteSpace = " \t\n\r\f\v";
constexpr size_t kSourceBytesMax = size_t{1} << 20;

constexpr std::array<std::string_view, 25> kOperators = {
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
    "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ","};

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c & 0x80) != 0;
}
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_part(char c) { return is_name_start(c) || is_digit(c); }

// jinja2 reads every form of line end as '\n' and drops one at the end of the template.
std::string normalised(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    const bool is_crlf = source[i] == '\r' && source.substr(i + 1).starts_with('\n');
    if (!is_crlf) out += source[i] == '\r' ? '\n' : source[i];
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalised(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) text();
    push(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  using Kind = Token::Kind;
  enum class After { kKeep, kTrimNewline, kStripAll };

  // Data up to the next mark, and the mark.
  void text() {
    const size_t mark = next_mark();
    if (mark == source_.npos) {
      data(source_.substr(at_));
      at_ = source_.size();
      return;
    }
    const char kind = source_[mark + 1];
    const char sign = mark + 2 < source_.size() ? source_[mark + 2] : '\0';
    const bool has_sign = sign == '-' || sign == '+';
    data(before_mark(source_.substr(at_, mark - at_), kind, sign));
    move_to(mark);
    const size_t inside = mark + (has_sign ? 3 : 2);
    if (kind == '#') {
      comment(inside);
    } else if (kind == '%' && is_word(inside, "raw")) {
      raw(inside);
    } else {
      push(kind == '{' ? Kind::kVariableBegin : Kind::kBlockBegin, "");
      move_to(inside);
      expression(kind == '{' ? "}}" : "%}");
    }
  }

  size_t next_mark() const {
    for (size_t i = source_.find('{', at_); i != source_.npos; i = source_.find('{', i + 1)) {
      const char next = i + 1 < source_.size() ? source_[i + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') return i;
    }
    return source_.npos;
  }

  // What is left of the text before a mark.
  std::string before_mark(std::string text, char kind, char sign) const {
    if (sign == '-') {
      text.erase(text.find_last_not_of(kWhiteSpace) + 1);
    } else if (sign != '+' && kind != '{') {
      const size_t line_end = text.rfind('\n');
      const size_t line = line_end == text.npos ? 0 : line_end + 1;
      const bool blank = text.find_first_not_of(kWhiteSpace, line) == text.npos;
      if (blank && (line > 0 || at_line_start_)) text.erase(line);
    }
    return text;
  }

  bool is_word(size_t at, std::string_view word) const {
    at = std::min(source_.find_first_not_of(kWhiteSpace, at), source_.size());
    if (source_.compare(at, word.size(), word) != 0) return false;
    at = std::min(source_.find_first_not_of(kWhiteSpace, at + word.size()), source_.size());
    return source_.compare(at, 2, "%}") == 0 || source_.compare(at, 3, "-%}") == 0 ||
           source_.compare(at, 3, "+%}") == 0;
  }

  void comment(size_t inside) {
    const size_t end = source_.find("#}", inside);
    if (end == source_.npos) fail("this comment has no end, expected #}");
    move_to(end + 2);
    after_mark(end > inside ? source_[end - 1] : '\0', After::kTrimNewline);
  }

  void raw(size_t inside) {
    const size_t close = source_.find("%}", inside);
    const bool strip = source_[close - 1] == '-';
    size_t begin = close + 2;
    if (strip) begin = std::min(source_.find_first_not_of(kWhiteSpace, begin), source_.size());
    size_t end = begin;
    for (;; ++end) {
      end = source_.find("{%", end);
      if (end == source_.npos) fail("raw has no endraw");
      if (is_word(end + 2 + has_sign(end + 2), "endraw")) break;
    }
    at_line_start_ = source_[begin - 1] == '\n';
    const char sign = source_[end + 2];
    data(before_mark(source_.substr(begin, end - begin), '%', sign));
    const size_t last = source_.find("%}", end + 2);
    move_to(last + 2);
    after_mark(source_[last - 1], After::kTrimNewline);
  }

  size_t has_sign(size_t at) const {
    return at < source_.size() && (source_[at] == '-' || source_[at] == '+') ? 1 : 0;
  }

  // Behind the end of a tag: what white space goes with it.
  void after_mark(char sign, After normal) {
    size_t end = at_;
    if (sign == '-') {
      end = std::min(source_.find_first_not_of(kWhiteSpace, at_), source_.size());
    } else if (sign != '+' && normal == After::kTrimNewline && end < source_.size() &&
               source_[end] == '\n') {
      ++end;
    }
    move_to(end);
    at_line_start_ = source_[at_ - 1] == '\n';
  }

  void expression(std::string_view close) {
    std::string brackets;  // the closing ones that are due
    for (;;) {
      move_to(std::min(source_.find_first_not_of(kWhiteSpace, at_), source_.size()));
      if (at_ == source_.size()) fail(fmt::format("this tag has no end, expected {}", close));
      if (brackets.empty() && try_close(close)) return;
      const char c = source_[at_];
      if (is_name_start(c)) {
        name();
      } else if (is_digit(c)) {
        number();
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        operation(brackets);
      }
    }
  }

  bool try_close(std::string_view close) {
    const size_t sign = has_sign(at_);
    if (source_.compare(at_ + sign, 2, close) != 0) return false;
    if (sign == 1 && source_[at_] == '+' && close == "}}") return false;
    push(close == "}}" ? Kind::kVariableEnd : Kind::kBlockEnd, "");
    const char sign_char = sign == 1 ? source_[at_] : '\0';
    move_to(at_ + sign + 2);
    after_mark(sign_char, close == "%}" ? After::kTrimNewline : After::kKeep);
    return true;
  }

  void name() {
    size_t end = at_;
    while (end < source_.size() && is_name_part(source_[end])) ++end;
    push(Kind::kName, source_.substr(at_, end - at_));
    move_to(end);
  }

  // Decimal integers with '_' between digits, and decimal fractions; 0x, 0o and 0b.
  void number() {
    const std::string_view rest = std::string_view(source_).substr(at_);
    const int base = number_base(rest);
    size_t end = base == 10 ? 0 : 2;
    std::string digits;
    const auto take_digits = [&] {
      while (end < rest.size() &&
             (std::isxdigit(static_cast<unsigned char>(rest[end])) || rest[end] == '_')) {
        if (base != 16 && !is_digit(rest[end]) && rest[end] != '_') break;
        if (rest[end] != '_') digits += rest[end];
        ++end;
      }
    };
    take_digits();
    bool is_float = false;
    if (base == 10 && end + 1 < rest.size() && rest[end] == '.' && is_digit(rest[end + 1])) {
      is_float = true;
      digits += rest[end++];
      take_digits();
    }
    if (base == 10 && has_exponent(rest, end)) {
      is_float = true;
      digits += rest[end++];
      if (rest[end] == '+' || rest[end] == '-') digits += rest[end++];
      take_digits();
    }
    push_number(digits, base, is_float);
    move_to(at_ + end);
  }

  static int number_base(std::string_view text) {
    if (text.size() < 3 || text[0] != '0') return 10;
    const char c = static_cast<char>(text[1] | 0x20);
    return c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 10;
  }

  static bool has_exponent(std::string_view text, size_t at) {
    if (at + 1 >= text.size() || (text[at] | 0x20) != 'e') return false;
    const bool sign = text[at + 1] == '+' || text[at + 1] == '-';
    return at + 1 + sign < text.size() && is_digit(text[at + 1 + sign]);
  }

  void push_number(const std::string& digits, int base, bool is_float) {
    push(is_float ? Kind::kFloat : Kind::kInteger, digits);
    const char *begin = digits.data(), *end = begin + digits.size();
    const auto read = is_float ? std::from_chars(begin, end, tokens_.back().number)
                               : std::from_chars(begin, end, tokens_.back().integer, base);
    if (read.ec != std::errc() || read.ptr != end) {
      fail(fmt::format("\"{}\" is not a number of 64 bits", digits));
    }
  }

  void string(char quote) {
    std::string value;
    size_t i = at_ + 1;
    while (i < source_.size() && source_[i] != quote) {
      if (source_[i] == '\\' && i + 1 < source_.size()) {
        i = escape(i + 1, value);
      } else {
        value += source_[i++];
      }
    }
    if (i >= source_.size()) fail("this string has no end");
    push(Kind::kString, std::move(value));
    move_to(i + 1);
  }

  // One escape of Python's, from behind the backslash; returns where it ends.
  size_t escape(size_t i, std::string& out) {
    static constexpr std::string_view kShort = "n\nt\tr\rb\bf\fv\va\a\\\\''\"\"";
    const char c = source_[i];
    const size_t at = kShort.find(c);
    if (c == '\n') return i + 1;
    if (at != kShort.npos && at % 2 == 0) {
      out += kShort[at + 1];
      return i + 1;
    }
    if (c == 'x') return code_point(i + 1, 2, out);
    if (c == 'u') return code_point(i + 1, 4, out);
    if (c == 'U') return code_point(i + 1, 8, out);
    if (c >= '0' && c <= '7') return octal(i, out);
    out += '\\';
    out += c;
    return i + 1;
  }

  size_t code_point(size_t i, size_t num_digits, std::string& out) {
    uint32_t code = 0;
    const std::string_view digits =
        std::string_view(source_).substr(std::min(i, source_.size()), num_digits);
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    const bool is_scalar = code < 0xD800 || (code > 0xDFFF && code <= 0x10FFFF);
    if (digits.size() != num_digits || read.ptr != digits.data() + num_digits || !is_scalar) {
      fail("this string has an escape that is no character");
    }
    append_utf8(code, out);
    return i + num_digits;
  }

  size_t octal(size_t i, std::string& out) {
    uint32_t code = 0;
    for (int n = 0; n < 3 && i < source_.size() && source_[i] >= '0' && source_[i] <= '7'; ++n) {
      code = code * 8 + static_cast<uint32_t>(source_[i++] - '0');
    }
    append_utf8(code, out);
    return i;
  }

  void operation(std::string& brackets) {
    const std::string_view rest = std::string_view(source_).substr(at_);
    const auto found = std::find_if(kOperators.begin(), kOperators.end(),
                                    [&](std::string_view op) { return rest.starts_with(op); });
    if (found == kOperators.end())
      fail(fmt::format("unexpected character '{}'", rest.substr(0, 1)));
    const char c = (*found)[0];
    if (c == '(' || c == '[' || c == '{') brackets += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (brackets.empty() || brackets.back() != c) fail(fmt::format("unexpected '{}'", c));
      brackets.pop_back();
    }
    push(Kind::kOperator, std::string(*found));
    move_to(at_ + found->size());
  }

  void data(std::string text) {
    if (!text.empty()) push(Kind::kData, std::move(text));
  }

  void push(Kind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), 0, 0, line_, column_});
  }

  void move_to(size_t end) {
    for (; at_ < end; ++at_) {
      column_ = source_[at_] == '\n' ? 1 : column_ + 1;
      line_ += source_[at_] == '\n';
    }
  }

  [[noreturn]] void fail(std::string message) const {
    throw SyntaxError{std::move(message), line_, column_};
  }

  const std::string source_;
  size_t at_ = 0;
  int line_ = 1, column_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokens_of(std::string_view source) {
  if (source.size() > kSourceBytesMax) {
    throw SyntaxError{fmt::format("{} bytes, more than {}", source.size(), kSourceBytesMax)};
  }
  if (!is_valid_utf8(source)) throw SyntaxError{"not UTF-8"};
  return Lexer(source).run();
}

}  // namespace atl::text::jinja
