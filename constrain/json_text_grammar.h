// The parts of JSON as steps of a grammar: characters, strings, patterns, numbers, any value.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "constrain/grammar.h"
#include "constrain/pattern.h"

namespace atl::constrain {

// One character of `set` within a JSON string, in its one usual form: as it is, or with the short
// escape if it must have one, or \u00xx.
void add_character(GrammarBuilder& grammar, GrammarBuilder::Node from, const CodePoints& set,
                   GrammarBuilder::Node to);
// One character of `set` as it is, without JSON.
void add_plain_character(GrammarBuilder& grammar, GrammarBuilder::Node from, const CodePoints& set,
                         GrammarBuilder::Node to);
// Any one character in any form that JSON has; escaped surrogates in pairs only.
void add_any_character(GrammarBuilder& grammar, GrammarBuilder::Node from, GrammarBuilder::Node to);
// `text` as it stands within a JSON string, without the quotes.
std::string string_text(std::string_view text);
// Strings that match a regular expression, without the quotes. Built: literals, classes, `.`,
// \d \w \s and their opposites, groups, alternatives, quantifiers, ^ and $ at the ends. As in JSON
// Schema a pattern without anchors may match anywhere within the string.
// kInvalid names what is not built; kUnsupported: it looks ahead, which takes a CharAutomaton.
Result<GrammarBuilder::Node> add_pattern(GrammarBuilder& grammar, GrammarBuilder::Node from,
                                         std::string_view pattern);

// Bounds of a number as decimal digits.
struct DecimalBound {
  std::string whole = "0";  // without leading zeros
  std::string fraction;
  bool negative = false;
  bool exclusive = false;
};

struct NumberRange {
  DecimalBound low, high;
  bool integer = false;
  // Of numbers times 10^fraction_digits_max, that is of the digits written without the point.
  int32_t multiple_of = 1;
  int fraction_digits_max = -1;  // -1: as many as fit; said with multiple_of of no integer
};

// Numbers of the range without exponent, with at most 15 digits (integers: as many as the bounds).
void add_number(GrammarBuilder& grammar, GrammarBuilder::Node from, const NumberRange& range,
                GrammarBuilder::Node to);

// Rules that every grammar has, in this order.
struct JsonRules {
  int32_t string = 0;  // any; rule 0
  int32_t number = 0, integer = 0, value = 0, object = 0, array = 0;
  GrammarBuilder::Node string_inside = 0;  // behind the opening quote and between characters
};
JsonRules add_json_rules(GrammarBuilder& grammar);

// `,` or `:` and at most one space.
GrammarBuilder::Node add_separator(GrammarBuilder& grammar, GrammarBuilder::Node from, char mark);

}  // namespace atl::constrain
