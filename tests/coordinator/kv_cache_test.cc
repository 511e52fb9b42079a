#include "coordinator/engine/kv_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "kernels/numeric_types.h"

namespace atl::coordinator {
namespace {

constexpr CacheShape kShape{1, 7, kernels::RowType::kBf16};

TEST(KvCache, hands_out_every_block_once_and_then_says_it_is_full) {
  KvCache cache(2, kShape, 3);
  std::set<BlockId> blocks;
  for (int i = 0; i < 3; ++i) {
    auto block = cache.allocate();
    ASSERT_TRUE(block);
    blocks.insert(*block);
  }
  EXPECT_EQ(blocks, (std::set<BlockId>{0, 1, 2}));
  auto none = cache.allocate();
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kOverloaded);
  cache.release(1);
  EXPECT_EQ(*cache.allocate(), 1);
}

TEST(KvCache, entries_are_rounded_to_the_cache_type_and_stay_in_their_place) {
  KvCache cache(2, kShape, 2);
  // 1 + 2^-8: a tie, rounds to 1
  const float values[7] = {1.0f, 1.00390625f, -3.0f, 1e-30f, 7.0f, 0.5f, 0.25f};
  cache.write(1, 1, 63, 0, values);
  const auto* entries = static_cast<const uint16_t*>(cache.block(1, 1));
  EXPECT_EQ(kernels::bf16_to_float(entries[63 * 7 + 1]), 1.0f);
  EXPECT_EQ(kernels::bf16_to_float(entries[63 * 7 + 2]), -3.0f);
  EXPECT_EQ(kernels::bf16_to_float(entries[63 * 7 + 6]), 0.25f);
  EXPECT_EQ(entries[62 * 7 + 6], 0);  // the neighbours are untouched
  EXPECT_EQ(static_cast<const uint16_t*>(cache.block(0, 1))[63 * 7 + 1], 0);
}

TEST(KvCache, positions_need_one_block_per_64) {
  EXPECT_EQ(KvCache::blocks_for(0), 0);
  EXPECT_EQ(KvCache::blocks_for(64), 1);
  EXPECT_EQ(KvCache::blocks_for(65), 2);
  EXPECT_EQ(KvCache::block_bytes(61, {1, 576, kernels::RowType::kBf16}), 61u * 64 * 576 * 2);
  EXPECT_EQ(KvCache::block_bytes(28, {2, 256, kernels::RowType::kF32}), 28u * 64 * 2 * 256 * 4);
}

TEST(KvCache, parts_of_a_block_lie_one_behind_the_other) {
  KvCache cache(2, {3, 2, kernels::RowType::kF32}, 2);
  for (int64_t part = 0; part < 3; ++part) {
    for (int64_t slot = 0; slot < 64; ++slot) {
      const auto value = static_cast<float>(100 * part + slot);
      const float values[2] = {value, -value};
      cache.write(1, 1, slot, part, values);
    }
  }
  for (int64_t part = 0; part < 3; ++part) {
    const auto* entries = static_cast<const float*>(cache.block(1, 1, part));
    for (int64_t slot = 0; slot < 64; ++slot) {
      EXPECT_EQ(entries[2 * slot], static_cast<float>(100 * part + slot));
      EXPECT_EQ(entries[2 * slot + 1], -static_cast<float>(100 * part + slot));
    }
  }
  const auto* before = static_cast<const float*>(cache.block(1, 0, 2));
  for (int i = 0; i < 128; ++i) EXPECT_EQ(before[i], 0) << i;
}

}  // namespace
}  // namespace atl::coordinator
