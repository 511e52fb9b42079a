#include "topology/machine_limit.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/units.h"

namespace atl::topology {
namespace {

constexpr MachineLimit kLimit{
    .read_bytes_per_second = 20e9, .fma_flop_per_second = 200e9, .int8_op_per_second = 400e9};

TEST(MachineLimit, up_to_a_tenth_is_no_difference) {
  EXPECT_FALSE(limits_differ(kLimit, kLimit));
  EXPECT_FALSE(limits_differ(kLimit, {18.1e9, 200e9, 400e9}));
  EXPECT_FALSE(limits_differ({18.1e9, 200e9, 400e9}, kLimit));
  EXPECT_FALSE(limits_differ(kLimit, {20e9, 221e9, 441e9}));
}

TEST(MachineLimit, more_than_a_tenth_of_any_is_a_difference_in_both_directions) {
  EXPECT_TRUE(limits_differ(kLimit, {17.9e9, 200e9, 400e9}));
  EXPECT_TRUE(limits_differ({17.9e9, 200e9, 400e9}, kLimit));
  EXPECT_TRUE(limits_differ(kLimit, {20e9, 179e9, 400e9}));
  EXPECT_TRUE(limits_differ({20e9, 179e9, 400e9}, kLimit));
  EXPECT_TRUE(limits_differ({20e9, 200e9, 359e9}, kLimit));
  EXPECT_TRUE(limits_differ(kLimit, {20e9, 200e9, 359e9}));
}

TEST(MachineProbe, reads_more_memory_than_all_caches_hold) {
  ThreadTeam team(2);
  MachineProbe probe(team);
  EXPECT_GE(probe.read_bytes(), 256 * kMiB);
  EXPECT_GE(probe.read_bytes(), 4 * last_level_cache_bytes());
  EXPECT_GE(last_level_cache_bytes(), l2_cache_bytes());
  const MachineLimit limit = probe.measure();
  EXPECT_GT(limit.read_bytes_per_second, 0);
  EXPECT_GT(limit.fma_flop_per_second, 0);
}

// A probe that the compiler emptied would be faster than any processor.
bool has_amx() {
#ifdef __x86_64__
  return __builtin_cpu_supports("amx-int8") != 0;
#else
  return false;
#endif
}

TEST(MachineProbe, measures_work_that_is_really_done) {
  ThreadTeam team(1);
  MachineProbe probe(team);
  const MachineLimit limit = probe.measure();
  const double clock = cycles_per_second();
  EXPECT_LT(clock, 10e9);
  EXPECT_LT(limit.fma_flop_per_second, 10e9 * 4 * 16 * 2);  // 4 units of 16 lanes
  EXPECT_LT(thread_fma_flop_per_second(), 10e9 * 4 * 16 * 2);
  EXPECT_LT(limit.read_bytes_per_second, 10e9 * 3 * 64);  // 3 loads of 64 bytes a cycle
  // 4 units of 64 bytes; AMX: 16 x 16 x 64 multiply-adds in 16 cycles.
  EXPECT_LT(limit.int8_op_per_second, 10e9 * (has_amx() ? 16 * 64 * 2 : 4 * 64 * 2));
}

// Both do a lane's multiply-adds on the same units: for bytes with maddubs (64 operations of 256
// bits take as long as 32 of FP32), for FP32 with fma. With VNNI there are four times as many, with
// AMX 32 times where the compiler optimizes FP32's: only the other bound holds in every build.
TEST(MachineProbe, int8_operations_are_some_times_those_of_fp32) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer's checks slow one of the two down more";
#endif
  const double most = has_amx() ? 1e6 : 8;
  ThreadTeam team(1);
  MachineProbe probe(team);
  // Other processes may slow one of the two down: the best of several tries of each.
  double int8 = 0, fma = 0;
  for (int i = 0; i < 10 && (int8 <= 1.2 * fma || int8 >= most * fma); ++i) {
    const MachineLimit limit = probe.measure();
    if (limit.int8_op_per_second == 0) GTEST_SKIP() << "no int8 instructions on this target";
    int8 = std::max(int8, limit.int8_op_per_second);
    fma = std::max(fma, limit.fma_flop_per_second);
  }
  EXPECT_GT(int8, 1.2 * fma);
  EXPECT_LT(int8, most * fma);
}

}  // namespace
}  // namespace atl::topology
