// Whether a mark in a reply is meant or only spoken of.
#pragma once

#include <string>
#include <string_view>

namespace atl::text {

// Whether what stands behind a text is spoken of: within a code fence (```), or behind a quotation
// mark or a backtick that opens. Of " and ` every second one of a line closes; any other closes
// behind a letter, a digit or what ends a sentence.
class QuoteWatch {
 public:
  void read(std::string_view text);
  bool in_fence() const { return fence_open_; }
  bool behind_opening() const;

 private:
  void read(char c);

  std::string tail_;
  size_t num_backticks_ = 0;  // at the end
  bool fence_open_ = false;
  bool span_open_ = false, double_open_ = false;  // on this line
};

// Whether a text begins with what a quotation ends with; it takes kQuoteBytesMax bytes to tell.
bool begins_with_quote(std::string_view text);
inline constexpr size_t kQuoteBytesMax = 3;

}  // namespace atl::text
