// Stop strings in text that comes in pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace atl::text {

// Passes text on up to the first stop string, which is never shown, not even its beginning. What
// push() and flush() return, joined, is the same for any split of the text. One thread.
class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {}

  // The text that can't be part of a stop string any more. Nothing after one was found.
  std::string push(std::string_view text);
  // No more text: what was held back.
  std::string flush();
  bool found() const { return found_; }
  const std::string& found_string() const { return found_string_; }  // empty: none
  size_t num_held() const { return held_.size(); }                   // bytes

 private:
  size_t length_to_hold() const;

  const std::vector<std::string> strings_;  // none is empty
  std::string held_;
  std::string found_string_;
  bool found_ = false;
};

}  // namespace atl::text
