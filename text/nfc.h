// Unicode's normalization form C, which some tokenizers apply to text before they cut it.
#pragma once

#include <string>
#include <string_view>

namespace atl::text {

// `text` is well-formed UTF-8. O(n log n) for any text, however many marks a letter has. Source:
// Unicode Standard Annex #15; the tables are those of utf8proc.
std::string to_nfc(std::string_view text);

}  // namespace atl::text
