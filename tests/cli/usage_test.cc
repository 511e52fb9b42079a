#include "cli/usage.h"
#include "base/one_line.h"

#include <gtest/gtest.h>

#include "cli/output.h"

namespace atl::cli {
namespace {

TEST(OneLine, keeps_utf8_and_removes_what_moves_the_cursor) {
  EXPECT_EQ(one_line("tensor \xc3\xa4\x1b[2J\nnext\tend\r\n"), "tensor \xc3\xa4?[2J next end");
}

}  // namespace
}  // namespace atl::cli
