#include "cli/rolling_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace atl::cli {
namespace {

// A terminal that knows what RollingText writes. Characters are ASCII here.
class Screen {
 public:
  explicit Screen(size_t columns) : columns_(columns) {}
  void write(const std::string& bytes) {
    for (size_t i = 0; i < bytes.size(); ++i) {
      const char c = bytes[i];
      if (c == '\x1b') {
        ASSERT_EQ(bytes[i + 1], '[');
        char* end = nullptr;
        const long n = std::strtol(bytes.c_str() + i + 2, &end, 10);
        i = static_cast<size_t>(end - bytes.c_str());
        if (bytes[i] == 'A') row_ -= static_cast<size_t>(n);
        if (bytes[i] == 'J') {
          rows_.resize(row_ + 1);
          rows_[row_].resize(column_);
        }
      } else if (c == '\r') {
        column_ = 0;
      } else if (c == '\n') {
        if (++row_ == rows_.size()) rows_.emplace_back();
      } else {
        rows_[row_].resize(std::max(rows_[row_].size(), column_ + 1), ' ');
        rows_[row_][column_++] = c;
        ASSERT_LT(column_, columns_);
      }
    }
  }
  const std::vector<std::string>& rows() const { return rows_; }
  bool is_blank() const { return rows_.size() == 1 && rows_[0].empty() && column_ == 0; }

 private:
  const size_t columns_;
  std::vector<std::string> rows_{1};
  size_t row_ = 0, column_ = 0;
};

using Rows = std::vector<std::string>;

TEST(RollingText, shows_the_last_rows_and_goes_away) {
  Screen screen(11);
  RollingText text(11, 3);
  for (const char* piece : {"one ", "two", "\nthree four five", " six\n", "seven"}) {
    screen.write(text.add(piece));
  }
  EXPECT_EQ(screen.rows(), (Rows{"three four", " five six", "seven"}));
  screen.write(text.add(" eight nine"));
  EXPECT_EQ(screen.rows(), (Rows{" five six", "seven eigh", "t nine"}));
  screen.write(text.erase());
  EXPECT_TRUE(screen.is_blank());
  EXPECT_EQ(text.erase(), "");
}

// However it is cut, the rows are those of the text as a whole.
TEST(RollingText, is_the_same_for_any_pieces) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    std::string all;
    for (int i = 0; i < 200; ++i) all += "ab c\t\n"[random() % 6];
    Screen whole(20), pieces(20);
    RollingText once(20, 4), often(20, 4);
    whole.write(once.add(all));
    for (size_t at = 0; at < all.size();) {
      const size_t length = 1 + random() % 9;
      pieces.write(often.add(all.substr(at, length)));
      at += length;
    }
    ASSERT_EQ(pieces.rows(), whole.rows());
    ASSERT_LE(pieces.rows().size(), 4u);
    pieces.write(often.erase());
    ASSERT_TRUE(pieces.is_blank());
  }
}

TEST(RollingText, wide_characters_take_two_columns) {
  EXPECT_EQ(columns_of(U'a'), 1);
  EXPECT_EQ(columns_of(U'中'), 2);
  EXPECT_EQ(columns_of(U'😀'), 2);
  EXPECT_EQ(columns_of(U'\u0301'), 0);
  RollingText text(9, 2);  // 8 columns are used
  EXPECT_EQ(text.add("中中中中中"), "中中中中\r\n中");
}

}  // namespace
}  // namespace atl::cli
