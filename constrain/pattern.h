// Regular expressions of JSON Schema, taken apart. Syntax: ECMA-262, the part that is regular.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace atl::constrain {

inline constexpr uint32_t kLastCodePoint = 0x10FFFF;
using CodePoints = std::vector<std::pair<uint32_t, uint32_t>>;  // ranges, both ends included

// Sorted, without overlaps, without surrogates.
CodePoints normalised(CodePoints ranges);
CodePoints complement(const CodePoints& ranges);

struct Pattern {
  enum class Kind { kSet, kSequence, kChoice, kRepeat };
  Kind kind = Kind::kSequence;
  CodePoints set;
  std::vector<Pattern> parts;
  int64_t min = 0, max = -1;  // of kRepeat; -1: without end
};

// A whole string fulfils it if it matches `body` and what `ahead` says: each matches the string,
// too, or doesn't.
struct ParsedPattern {
  struct Ahead {
    Pattern whole;
    bool negative = false;
  };
  Pattern body;
  std::vector<Ahead> ahead;
};

// Padded where it has no anchors: a pattern may match anywhere within the string. Built: literals,
// classes, `.`, \d \w \s and their opposites, groups, alternatives, quantifiers, ^ and $ at the
// ends, also those of the last group's alternatives, and looking ahead at the very beginning of a
// pattern without alternatives.
// kInvalid names what is not built.
Result<ParsedPattern> parse_pattern(std::string_view text);

}  // namespace atl::constrain
