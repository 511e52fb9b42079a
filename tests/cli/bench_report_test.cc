#include "cli/bench_report.h"

#include <gtest/gtest.h>

namespace atl::cli {
namespace {

TEST(Summary, spread_is_half_the_distance_of_the_ends_by_the_median) {
  EXPECT_EQ(spread_text({9, 10, 12}), "+-15 %");
  EXPECT_EQ(spread_text({10}), "+-0 %");
  EXPECT_EQ(spread_text({}), "");
}

TEST(Summary, no_value_is_a_dash) {
  EXPECT_EQ(median_text({}, "{:.2f}"), "-");
  EXPECT_EQ(median_text({1, 2}, "{:.2f}"), "1.50");
}

TEST(Repeats, that_did_not_count_are_called_unreliable) {
  EXPECT_EQ(counted_text({.counted = 2, .voided = 2}), "2");
  EXPECT_EQ(counted_text({.counted = 0, .voided = 6}), "none, unreliable");
}

}  // namespace
}  // namespace atl::cli
