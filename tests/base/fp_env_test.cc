#include "base/fp_env.h"

#include <gtest/gtest.h>

#include <cfenv>

namespace atl {
namespace {

// Half of the smallest normal number: subnormal, so 0 under flush-to-zero.
float half_of_smallest_normal() {
  volatile float smallest = 0x1p-126f;
  return smallest * 0.5f;
}

TEST(FpEnv, flush_to_zero_is_seen_and_lifted_for_a_scope) {
  const ScopedStandardFpEnv restored;
  EXPECT_TRUE(fp_env_is_standard());
  EXPECT_EQ(half_of_smallest_normal(), 0x1p-127f);
  force_flush_to_zero_for_test();
  EXPECT_FALSE(fp_env_is_standard());
  EXPECT_EQ(half_of_smallest_normal(), 0.0f);
  {
    const ScopedStandardFpEnv standard;
    EXPECT_TRUE(fp_env_is_standard());
    EXPECT_EQ(half_of_smallest_normal(), 0x1p-127f);
  }
  EXPECT_FALSE(fp_env_is_standard());
}

TEST(FpEnv, another_rounding_is_seen_and_lifted_for_a_scope) {
  const ScopedStandardFpEnv restored;
  ASSERT_EQ(std::fesetround(FE_UPWARD), 0);
  EXPECT_FALSE(fp_env_is_standard());
  {
    const ScopedStandardFpEnv standard;
    EXPECT_TRUE(fp_env_is_standard());
    volatile float one = 1;
    EXPECT_EQ(one + 0x1p-30f, 1.0f);
  }
  EXPECT_FALSE(fp_env_is_standard());
  ASSERT_EQ(std::fesetround(FE_TONEAREST), 0);
}

}  // namespace
}  // namespace atl
