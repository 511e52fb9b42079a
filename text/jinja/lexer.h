// Tokens of a Jinja template, with white space already handled as jinja2 does with trim_blocks and
// lstrip_blocks on and keep_trailing_newline off.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace atl::text::jinja {

struct Token {
  enum class Kind : uint8_t {
    kData,           // text between marks
    kVariableBegin,  // {{
    kVariableEnd,
    kBlockBegin,  // {%
    kBlockEnd,
    kName,
    kInteger,
    kFloat,
    kString,
    kOperator,
    kEnd,
  };
  Kind kind = Kind::kEnd;
  std::string text;  // data, name, operator, the string's value
  int64_t integer = 0;
  double number = 0;
  int line = 1, column = 1;  // from 1; columns count bytes

  bool is(Kind k, std::string_view t) const { return kind == k && text == t; }
};

// What is wrong with a template's text, and where.
struct SyntaxError {
  std::string message;
  int line = 1, column = 1;
};

// Throws SyntaxError.
std::vector<Token> tokens_of(std::string_view source);

}  // namespace atl::text::jinja
