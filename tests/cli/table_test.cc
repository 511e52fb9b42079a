#include "cli/table.h"

#include <gtest/gtest.h>

namespace atl::cli {
namespace {

TEST(Table, aligns_columns_and_leaves_no_spaces_at_line_ends) {
  Table table({{"name"}, {"bytes", Align::kRight}, {""}});
  table.add_row({"a", "1", ""});
  table.add_row({"longer", "12,345", "note"});
  table.add_rule();
  table.add_row({"all", "12,346", ""});
  EXPECT_EQ(table.to_string("  "),
            "  name     bytes\n"
            "  ------  ------  ----\n"
            "  a            1\n"
            "  longer  12,345  note\n"
            "  ------  ------  ----\n"
            "  all     12,346\n");
}

}  // namespace
}  // namespace atl::cli
