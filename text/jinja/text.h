// Text as Python's str sees it: code points, white space, case.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/value.h"

namespace atl::text::jinja {

// The text of a str; refuses other values, `who` asked for it.
const std::string& text_of(const Value& value, std::string_view who);
Value text_value(std::string_view text, Budget& budget);
// str(value)
std::string str_of(const Value& value, Budget& budget);
// separator.join(items), all of them strings.
Value join_texts(const std::string& separator, const Value& items, Budget& budget);

bool is_python_space(uint32_t code_point);
size_t num_code_points(std::string_view text);
// Where the code point `index` begins; the text's size from its number of code points on.
size_t byte_offset(std::string_view text, size_t index);

enum class Side : uint8_t { kLeft, kRight, kBoth };
// Without code points of `chars` (nullptr: white space) at its sides.
std::string_view stripped(std::string_view text, const std::string* chars, Side side);

// Case of Latin (to U+017F), Greek and Cyrillic letters; others stay.
enum class Case : uint8_t { kUpper, kLower, kCapitalized, kTitle };
std::string with_case(std::string_view text, Case to, Budget& budget);
// As jinja2's filter `title`: only what follows white space, '-' or a bracket is a word's start.
std::string title_filter(std::string_view text, Budget& budget);

// As str.split and str.rsplit; no separator: at white space. Negative max: all.
std::vector<std::string_view> split(std::string_view text, const std::string* separator,
                                    int64_t max, Budget& budget);
std::vector<std::string_view> split_from_end(std::string_view text, const std::string* separator,
                                             int64_t max, Budget& budget);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends, Budget& budget);
// At most `max` (negative: all) times.
Value replaced(std::string_view text, std::string_view from, std::string_view to, int64_t max,
               Budget& budget);

// Python's int(text, base) and float(text).
std::optional<int64_t> parse_integer(std::string_view text, int base);
std::optional<double> parse_float(std::string_view text);

}  // namespace atl::text::jinja
