#include "cli/net_times.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/result.h"

namespace atl::cli {
namespace {

using testing::SizeIs;

// Each node works 1000 us on a dispatch; the links add 10, 20 and 200 us and what the rows take.
Trace three_nodes() {
  Trace trace;
  trace.threads.push_back({"coordinator", "engine", {}});
  uint64_t id = 0;
  for (const auto& [name, us] : std::map<std::string, int64_t>{{"a", 10}, {"b", 20}, {"c", 200}}) {
    Trace::Thread node{name, "data plane", {}};
    for (const int64_t rows : {1, 1, 1, 7, 16, 300, 512}) {
      const int64_t begin = 2'000'000 * static_cast<int64_t>(++id);
      trace.threads[0].events.push_back(
          {"share", begin, 1'100'000 + 1000 * (us + rows), 3, rows, id, name});
      // Whatever its clock says.
      node.events.push_back({"queue", begin + 9'000'000'000, 100'000, 3, rows, id, ""});
      node.events.push_back({"dispatch", begin + 9'000'100'000, 1'000'000, 3, rows, id, ""});
      node.events.push_back({"read", begin + 9'000'100'000, 500'000, 3, rows, id, ""});
    }
    trace.threads.push_back(std::move(node));
  }
  return trace;
}

TEST(NetTimes, are_what_is_left_beside_the_nodes_work) {
  const std::vector<NodeNet> nodes = net_times(three_nodes(), {{"b", {100, 300}}});
  ASSERT_THAT(nodes, SizeIs(3));
  const NodeNet& b = nodes[1];
  EXPECT_EQ(b.name, "b");
  ASSERT_THAT(b.cells, SizeIs(3));
  EXPECT_EQ(b.cells[0].rows, 1);
  EXPECT_EQ(b.cells[0].dispatches, 3u);
  EXPECT_NEAR(b.cells[0].median, 21e-6, 1e-12);
  EXPECT_EQ(b.cells[1].rows, 16);
  EXPECT_EQ(b.cells[2].rows, 512);
  EXPECT_NEAR(b.cells[2].median, 532e-6, 1e-12);
  EXPECT_EQ(b.cells[2].bytes_out, 51'200);
  EXPECT_EQ(b.cells[2].bytes_in, 153'600);
}

TEST(NetTimes, mark_who_adds_twice_what_the_middle_one_does) {
  const std::vector<NodeNet> nodes = net_times(three_nodes(), {});
  EXPECT_FALSE(nodes[0].cells[0].is_slow);
  EXPECT_FALSE(nodes[1].cells[0].is_slow);
  EXPECT_TRUE(nodes[2].cells[0].is_slow);
  EXPECT_FALSE(nodes[2].cells[2].is_slow);  // 712 us against 532
}

TEST(NetTimes, need_both_sides) {
  Trace trace = three_nodes();
  trace.threads.resize(1);
  EXPECT_THROW((void)net_times(trace, {}), LoadError);
}

}  // namespace
}  // namespace atl::cli
