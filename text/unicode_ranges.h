// Sets of code points by Unicode general category, versions 16.0 and 14.0.
//
// The Hugging Face tokenizers library classifies characters by Unicode 16.0, the PCRE2 of the
// distribution by 14.0. These tables say what differs, so that patterns mean the same here as
// there.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace atl::text {

struct CodePointRange {
  uint32_t first = 0;
  uint32_t last = 0;  // inclusive
  friend bool operator==(const CodePointRange&, const CodePointRange&) = default;
};

// Ascending, disjoint, not adjacent.
using CodePointSet = std::vector<CodePointRange>;

enum class UnicodeVersion { k14_0, k16_0 };

// The code points of a general category by its short name: a letter ("L") or a letter and a
// subcategory ("Lu"), as in \p{L}. Nothing if there is no such category.
// Source: Unicode Character Database, DerivedGeneralCategory.
std::optional<CodePointSet> general_category(std::string_view name, UnicodeVersion version);

// White_Space = yes: the 25 code points that \s means. The same in both versions.
std::span<const CodePointRange> white_space();

// All Unicode scalar values (no surrogates) outside `set`.
CodePointSet complement(const CodePointSet& set);
// The code points of `a` that aren't in `b`.
CodePointSet difference(const CodePointSet& a, const CodePointSet& b);

}  // namespace atl::text
