#include "base/nearest.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace atl {
namespace {

const std::vector<std::string> kOptions = {"--nodes", "--prompt", "--top-p", "--top-k", "--kv"};

TEST(Nearest, finds_a_name_one_letter_away) {
  EXPECT_EQ(nearest("--node", kOptions), "--nodes");
  EXPECT_EQ(nearest("--promtp", kOptions), "--prompt");
}

TEST(Nearest, is_silent_when_nothing_is_near) {
  EXPECT_EQ(nearest("--colour", kOptions), "");
  EXPECT_EQ(nearest("", kOptions), "");
}

TEST(Nearest, allows_fewer_edits_in_short_words) {
  const std::vector<std::string> names = {"abc", "defgh", "ijklmnop"};
  EXPECT_EQ(nearest("ab", names), "");
  EXPECT_EQ(nearest("defg", names), "defgh");
  EXPECT_EQ(nearest("def", names), "");
  EXPECT_EQ(nearest("ijklmn", names), "ijklmnop");
  EXPECT_EQ(nearest("ijklmxyz", names), "");
}

}  // namespace
}  // namespace atl
