#include "coordinator/cluster/speed_meter.h"

#include <gtest/gtest.h>

namespace atl::coordinator {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

TEST(SpeedMeter, tells_what_a_tile_takes_each_node) {
  SpeedMeter meter;
  EXPECT_FALSE(meter.has_any());
  for (int i = 0; i < 5; ++i) {
    meter.add_dispatch(1,
                       {{0, 2, milliseconds(2)}, {1, 1, milliseconds(5)}, {2, 1, milliseconds(1)}});
  }
  EXPECT_TRUE(meter.has_any());
  const auto speeds = meter.take(4);
  EXPECT_EQ(speeds[0].answers, 5);
  EXPECT_NEAR(speeds[0].seconds_per_tile, 1e-3, 1e-9);
  EXPECT_NEAR(speeds[1].seconds_per_tile, 5e-3, 1e-9);
  EXPECT_NEAR(speeds[2].seconds_per_tile, 1e-3, 1e-9);
  EXPECT_EQ(speeds[3].answers, 0);
  EXPECT_FALSE(meter.has_any());
  EXPECT_EQ(meter.take(2)[0].answers, 0);
}

// One node was asked for the small ones only: it is not faster for that.
TEST(SpeedMeter, compares_nodes_that_had_a_part_in_different_dispatches) {
  SpeedMeter meter;
  for (int i = 0; i < 4; ++i) {
    meter.add_dispatch(512, {{0, 1, milliseconds(100)}, {1, 1, milliseconds(100)}});
    meter.add_dispatch(1,
                       {{0, 1, milliseconds(1)}, {1, 1, milliseconds(1)}, {2, 1, milliseconds(1)}});
  }
  const auto speeds = meter.take(3);
  EXPECT_NEAR(speeds[2].seconds_per_tile, speeds[0].seconds_per_tile, 1e-9);
}

TEST(SpeedMeter, a_trial_is_compared_with_dispatches_of_its_size) {
  SpeedMeter meter;
  meter.add_trial(1, {2, 4, milliseconds(3)});  // nothing to compare it with yet
  meter.add_dispatch(1, {{0, 1, microseconds(500)}, {1, 1, microseconds(500)}});
  meter.add_dispatch(512, {{0, 1, microseconds(50'000)}, {1, 1, microseconds(50'000)}});
  meter.add_trial(1, {2, 4, microseconds(2'000)});
  const auto speeds = meter.take(3);
  EXPECT_NEAR(speeds[2].tried_seconds, 4 * speeds[0].seconds_per_tile, 1e-9);
  EXPECT_EQ(speeds[2].answers, 0);
}

// As of a process that gets its share of a CPU in pieces.
TEST(SpeedMeter, one_long_pause_in_many_answers_counts_by_its_length) {
  SpeedMeter meter;
  for (int i = 0; i < 100; ++i) {
    const auto took = i == 50 ? milliseconds(401) : milliseconds(1);
    meter.add_dispatch(1, {{0, 1, took}, {1, 1, milliseconds(1)}});
  }
  const auto speeds = meter.take(2);
  EXPECT_NEAR(speeds[0].seconds_per_tile, 5e-3, 1e-9);
  EXPECT_NEAR(speeds[1].seconds_per_tile, 1e-3, 1e-9);
}

TEST(SpeedMeter, of_one_node_alone_there_is_nothing_to_compare) {
  SpeedMeter meter;
  meter.add_dispatch(1, {{0, 4, milliseconds(1)}});
  EXPECT_FALSE(meter.has_any());
}

}  // namespace
}  // namespace atl::coordinator
