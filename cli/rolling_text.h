// Text on a terminal that takes few rows while it grows and can be taken away again.
//
// Only the last rows are shown, so that all that was written is still on the screen and can be
// erased: what a model thinks, until it answers. What is returned is to be written to the terminal
// as it is, and nothing else in between.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace atl::cli {

class RollingText {
 public:
  // columns: of the terminal. rows_max: at least 1.
  RollingText(int columns, int rows_max);

  // More of the text, valid UTF-8 without control characters but line ends and tabs.
  std::string add(std::string_view text);
  // Takes all of it away; the cursor is where it began.
  std::string erase();

 private:
  // Where the rows of text_ begin, the last rows_max of them.
  std::string draw();

  const int columns_, rows_max_;
  std::string text_;  // what may still be shown
  int rows_shown_ = 0;
};

// Columns that a code point takes on a terminal: 0, 1 or 2. Source: Unicode's EastAsianWidth.txt,
// in its large blocks.
int columns_of(char32_t code_point);

}  // namespace atl::cli
