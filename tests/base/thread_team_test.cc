#include "base/thread_team.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <mutex>
#include <new>
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

// Short memory, say: whoever asked for the loop gets the exception, and the team lives on.
TEST(ThreadTeam, what_a_body_throws_is_thrown_to_the_caller_when_all_have_stopped) {
  for (int num_threads : {1, 2, 5}) {
    ThreadTeam team(num_threads);
    for (int64_t bad_unit : {0, 1, 500, 999}) {
      std::atomic<int> inside{0}, done{0};
      const auto body = [&](int64_t begin, int64_t, int) {
        ++inside;
        if (begin >= bad_unit) {
          --inside;
          throw std::bad_alloc();
        }
        ++done;
        --inside;
      };
      EXPECT_THROW(team.parallel_for(1000, 1, body), std::bad_alloc);
      EXPECT_EQ(inside, 0);
      EXPECT_EQ(done, bad_unit);
      std::atomic<int> units{0};
      team.parallel_for(1000, 1, [&](int64_t, int64_t, int) { ++units; });
      EXPECT_EQ(units, 1000);
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

// Processors that this thread may use.
std::vector<int> own_cpus() {
  cpu_set_t set;
  EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

// What each member of the team says of itself. The members wait for each other, so that each takes
// one unit.
std::vector<std::vector<int>> cpus_of_members(ThreadTeam& team) {
  std::vector<std::vector<int>> cpus(team.num_threads());
  std::atomic<int> here{0};
  team.parallel_for(team.num_threads(), 1, [&](int64_t, int64_t, int member) {
    cpus[member] = own_cpus();
    ++here;
    while (here < team.num_threads()) std::this_thread::yield();
  });
  return cpus;
}

TEST(PinnedThreadTeam, keeps_each_other_member_on_its_processor_and_leaves_the_caller) {
  const std::vector<int> all = own_cpus();
  ThreadTeam team(3, {all.front(), all.back(), all.front()});
  const auto cpus = cpus_of_members(team);
  EXPECT_EQ(cpus[0], all);
  EXPECT_EQ(cpus[1], std::vector<int>{all.back()});
  EXPECT_EQ(cpus[2], std::vector<int>{all.front()});
}

TEST(PinnedThreadTeam, the_caller_is_pinned_when_asked_and_free_again_afterwards) {
  const std::vector<int> all = own_cpus();
  ThreadTeam team(2, {all.back(), all.front()});
  {
    const auto pin = team.pin_caller();
    ASSERT_NE(pin, nullptr);
    EXPECT_TRUE(pin->pinned());
    EXPECT_EQ(own_cpus(), std::vector<int>{all.back()});
  }
  EXPECT_EQ(own_cpus(), all);
}

TEST(PinnedThreadTeam, works_unpinned_where_the_kernel_refuses) {
  const std::vector<int> all = own_cpus();
  ThreadTeam team(2, {CPU_SETSIZE - 1, CPU_SETSIZE - 1});  // a processor that nobody has
  EXPECT_FALSE(team.pin_caller()->pinned());
  const auto cpus = cpus_of_members(team);
  EXPECT_EQ(cpus[0], all);
  EXPECT_EQ(cpus[1], all);
}

TEST(PinnedThreadTeam, without_processors_nobody_is_pinned) {
  ThreadTeam team(2);
  EXPECT_EQ(team.pin_caller(), nullptr);
  EXPECT_EQ(cpus_of_members(team)[1], own_cpus());
}

TEST(UsableCores, is_at_least_one_and_no_more_than_the_machine_has) {
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace
}  // namespace atl
