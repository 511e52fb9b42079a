#include "text/stop_strings.h"

#include <algorithm>
#include <utility>

namespace atl::text {

std::string StopStrings::push(std::string_view text) {
  if (found_) return {};
  if (strings_.empty()) return std::string(text);
  held_ += text;
  // The stop string that ends first, as if the text came byte by byte; of several, the longest.
  size_t begin = std::string::npos, end = std::string::npos;
  for (const std::string& stop : strings_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t stop_end = at + stop.size();
    if (stop_end < end || (stop_end == end && at < begin)) {
      begin = at;
      end = stop_end;
      found_string_ = stop;
    }
  }
  if (begin != std::string::npos) {
    found_ = true;
    held_.resize(begin);
    return std::exchange(held_, {});
  }
  std::string released = held_.substr(0, held_.size() - length_to_hold());
  held_.erase(0, released.size());
  return released;
}

std::string StopStrings::flush() { return std::exchange(held_, {}); }

// The longest end of held_ that begins a stop string.
size_t StopStrings::length_to_hold() const {
  size_t longest = 0;
  for (const std::string& stop : strings_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > longest; --n) {
      if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) longest = n;
    }
  }
  return longest;
}

}  // namespace atl::text
