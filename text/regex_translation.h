// From the regular expressions of a tokenizer.json to those of PCRE2.
//
// The Hugging Face tokenizers library runs them with Oniguruma (Ruby syntax, Unicode 16.0). PCRE2
// differs in the Unicode version, in \s, \d, \h and \v, in what ^ and $ mean, in {,n}, and has no
// classes with && or other classes in them. The
// translation writes each of these out so that it matches the same text; what it can't translate
// with certainty (\w, \b, \R, scripts but Han, back references, flags but i, ...) it refuses by
// name.
#pragma once

#include <string>
#include <string_view>

#include "text/unicode_ranges.h"

namespace atl::text {

// Which code points PCRE2's own \p{..} stand for.
enum class PcreProperties {
  kUnicode14,  // PCRE2 10.40 to 10.42: add what was assigned since
  kUnicode16,  // use them as they are
  kUnknown,    // don't use them: write the code points out (slower, always right)
};

// Pattern for pcre2_compile with PCRE2_UTF and PCRE2_MULTILINE. `pattern` is valid UTF-8.
// Throws LoadError with what isn't supported and at which byte, without a file name.
std::string translate_pattern(std::string_view pattern, PcreProperties properties);

}  // namespace atl::text
