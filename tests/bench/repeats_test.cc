#include "bench/repeats.h"

#include <gtest/gtest.h>

#include <vector>

namespace atl::bench {
namespace {

using topology::MachineLimit;

TEST(Summary, is_the_middle_and_the_ends) {
  const Summary odd = summarize({5, 1, 3});
  EXPECT_EQ(odd.median, 3);
  EXPECT_EQ(odd.low, 1);
  EXPECT_EQ(odd.high, 5);
  EXPECT_EQ(summarize({4, 1, 2, 100}).median, 3);
  EXPECT_EQ(summarize({7}).median, 7);
}

// A machine whose read rate, in GB/s, is what the list says at each asking, and whose work takes
// ten seconds.
struct Machine {
  std::vector<double> read;
  double seconds_max = 0;
  size_t asked = 0;
  int worked = 0;
  std::vector<double> counted = {}, voided = {};
  ManualClock clock = {};

  RepeatsDone run(int wanted) {
    return run_repeats(
        {wanted, seconds_max}, clock,
        [this] {
          return MachineLimit{read.at(asked++), 100};
        },
        [this] {
          ++worked;
          clock.advance(std::chrono::seconds(10));
        },
        [this](const MachineLimit& limit, bool counts) {
          (counts ? counted : voided).push_back(limit.read_bytes_per_second);
        });
  }
};

TEST(Repeats, count_between_equal_limits_with_their_mean) {
  Machine machine{.read = {20, 21, 19.5, 19.5}};
  EXPECT_EQ(machine.run(3).voided, 0);
  EXPECT_EQ(machine.worked, 3);
  EXPECT_EQ(machine.counted, (std::vector<double>{20.5, 20.25, 19.5}));
}

TEST(Repeats, void_ones_are_run_again) {
  Machine machine{.read = {20, 10, 10, 30, 30}};
  const RepeatsDone done = machine.run(2);
  EXPECT_EQ(done.voided, 2);
  EXPECT_EQ(done.counted, 2);
  EXPECT_EQ(machine.worked, 4);
  EXPECT_EQ(machine.counted, (std::vector<double>{10, 30}));
}

TEST(Repeats, of_a_machine_that_never_stands_still_are_kept_and_called_unreliable) {
  Machine machine{.read = {20, 10, 20, 10, 20, 10, 20}};
  const RepeatsDone done = machine.run(2);
  EXPECT_EQ(done.voided, 2 * kTriesPerRepeat);
  EXPECT_FALSE(done.reliable());
  EXPECT_EQ(machine.worked, 2 * kTriesPerRepeat);
  EXPECT_TRUE(machine.counted.empty());
  EXPECT_EQ(machine.voided, std::vector<double>(6, 15));
}

TEST(Repeats, end_with_their_time_but_once_is_always_measured) {
  Machine machine{.read = std::vector<double>(10, 20.0), .seconds_max = 25};
  EXPECT_EQ(machine.run(9).counted, 3);  // the third begins after 20 s
  Machine slow{.read = {20, 10}, .seconds_max = 1};
  EXPECT_EQ(slow.run(5).voided, 1);
  EXPECT_EQ(slow.worked, 1);
}

}  // namespace
}  // namespace atl::bench
