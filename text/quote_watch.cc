#include "text/quote_watch.h"

#include <algorithm>
#include <iterator>

#include "text/reply_marks.h"

namespace atl::text {
namespace {

// What a mark stands between where it is only spoken of.
constexpr std::string_view kQuotes[] = {"`", "\"", "'", "“", "‘", "«", "”",
                                        "’", "»",  "„", "‚", "‹", "›"};
constexpr std::string_view kOtherQuotes[] = {"'", "“", "‘", "«", "”", "’", "»", "„", "‚", "‹", "›"};
constexpr size_t kTailBytes = 8;  // hold a quotation mark and what stands before it

bool opens_behind(std::string_view before) {
  constexpr std::string_view kOpeners = " \t\r\n([{=:,;-/|>*_\"`'";
  constexpr std::string_view kDashes[] = {"\u2013", "\u2014"};
  return before.empty() || kOpeners.find(before.back()) != before.npos ||
         std::any_of(std::begin(kDashes), std::end(kDashes),
                     [&](std::string_view dash) { return before.ends_with(dash); });
}

}  // namespace

void QuoteWatch::read(std::string_view text) {
  for (const char c : text) read(c);
}

void QuoteWatch::read(char c) {
  if (c == '`') {
    if (num_backticks_ == 0) span_open_ = !span_open_;
    ++num_backticks_;
    if (num_backticks_ == kFence.size()) {
      fence_open_ = !fence_open_;
      span_open_ = !span_open_;
    }
  } else {
    num_backticks_ = 0;
  }
  if (c == '"') double_open_ = !double_open_;
  if (c == '\n') span_open_ = double_open_ = false;
  tail_ += c;
  if (tail_.size() > kTailBytes) tail_.erase(0, tail_.size() - kTailBytes);
}

bool QuoteWatch::behind_opening() const {
  if (num_backticks_ > 0) return num_backticks_ < kFence.size() && span_open_;
  if (tail_.ends_with('"')) return double_open_;
  for (const std::string_view quote : kOtherQuotes) {
    if (tail_.ends_with(quote))
      return opens_behind(std::string_view(tail_).substr(0, tail_.size() - quote.size()));
  }
  return false;
}

bool begins_with_quote(std::string_view text) {
  return std::any_of(std::begin(kQuotes), std::end(kQuotes),
                     [&](std::string_view quote) { return text.starts_with(quote); });
}

}  // namespace atl::text
