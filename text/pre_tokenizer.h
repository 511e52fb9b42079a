// Cuts text into the pieces inside which byte pairs are merged.
#pragma once

#include <cstddef>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace atl::text {

// One step of a tokenizer.json's pre-tokenizer sequence, behaviour "Isolated": matches become
// pieces of their own, what lies between them, too.
struct SplitPattern {
  enum class Kind { kRegex, kLiteral };
  Kind kind = Kind::kRegex;
  std::string text;  // Oniguruma syntax, or the literal; UTF-8
};

// A sequence of splits, each applied to every piece of the one before it, as if the piece were the
// whole text (look-around sees its ends). Immutable, any thread. Linear in the text for patterns
// that are linear in it; a pattern that backtracks without end meets PCRE2's match limit.
class PreTokenizer {
 public:
  // Throws LoadError (no file name) when a pattern isn't supported or doesn't compile.
  explicit PreTokenizer(const std::vector<SplitPattern>& splits);
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;

  // Pieces of `text` (well-formed UTF-8) in order: views into it, none empty, together all of it.
  // kInvalid names the split that gave up and where; kUnavailable: it was asked to stop.
  Result<std::vector<std::string_view>> split(std::string_view text,
                                              std::stop_token stop = {}) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace atl::text
