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

// The code points of a script by its name, version 16.0: "Han", which is the only one here. Nothing
// for others. Source: Unicode Character Database, Scripts.txt; the same as tokenizers 0.23 has.
std::optional<CodePointSet> script(std::string_view name);

// White_Space = yes: the 25 code points that \s means. The same in both versions.
std::span<const CodePointRange> white_space();

// All Unicode scalar values (no surrogates) outside `set`.
CodePointSet complement(const CodePointSet& set);
// Any set of ranges in order and without overlaps.
CodePointSet united(CodePointSet ranges);
CodePointSet intersection(const CodePointSet& a, const CodePointSet& b);
// The code points of `a` that aren't in `b`.
CodePointSet difference(const CodePointSet& a, const CodePointSet& b);

}  // namespace atl::text
