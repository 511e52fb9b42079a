#include "base/thread_team.h"

#include <gtest/gtest.h>

#include <mutex>
#include <numeric>
#include <set>

#include "base/fp_env.h"

namespace atl {
namespace {

TEST(ThreadTeam, does_each_unit_once_in_blocks_of_at_most_the_grain) {
  for (int num_threads : {1, 2, 3, 8}) {
    ThreadTeam team(num_threads);
    EXPECT_EQ(team.num_threads(), num_threads);
    for (int64_t num_units : {0, 1, 2, 7, 64, 1001}) {
      for (int64_t grain : {1, 4, 1000}) {
        std::vector<std::atomic<int>> done(num_units);
        std::atomic<int64_t> largest{0};
        team.parallel_for(num_units, grain, [&](int64_t begin, int64_t end, int member) {
          EXPECT_TRUE(member >= 0 && member < num_threads);
          if (end - begin > largest) largest = end - begin;
          for (int64_t i = begin; i < end; ++i) ++done[i];
        });
        for (const auto& count : done) EXPECT_EQ(count, 1);
        EXPECT_LE(largest, grain);
      }
    }
  }
}

TEST(ThreadTeam, has_finished_everything_when_it_returns) {
  ThreadTeam team(4);
  std::vector<int64_t> values(256);
  for (int64_t loop = 1; loop <= 2000; ++loop) {
    team.parallel_for(256, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[i] += 1;
    });
    ASSERT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), 256 * loop);
  }
}

TEST(ThreadTeam, every_member_has_the_standard_floating_point_environment) {
  ThreadTeam team(3);
  ScopedStandardFpEnv restored;  // puts this thread's settings back at the end of the test
  force_flush_to_zero_for_test();
  ASSERT_FALSE(fp_env_is_standard());
  std::atomic<int> not_standard{0};
  team.parallel_for(300, 1,
                    [&](int64_t, int64_t, int) { not_standard += fp_env_is_standard() ? 0 : 1; });
  EXPECT_EQ(not_standard, 0);
  EXPECT_FALSE(fp_env_is_standard());  // the caller's own is as it was
}

TEST(ThreadTeam, members_started_under_flush_to_zero_still_compute_subnormals) {
  ScopedStandardFpEnv restored;
  force_flush_to_zero_for_test();
  ThreadTeam team(2);  // threads inherit the settings of their maker
  std::vector<float> halves(64);
  volatile float tiny = 1e-38f;
  team.parallel_for(64, 1, [&](int64_t begin, int64_t, int) { halves[begin] = tiny * 0.5f; });
  ScopedStandardFpEnv standard;
  for (float half : halves) EXPECT_EQ(half, 5e-39f);
}

TEST(UsableCores, is_at_least_one_and_no_more_than_the_machine_has) {
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace atl
