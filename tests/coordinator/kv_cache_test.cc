#include "coordinator/engine/kv_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "kernels/numeric_types.h"

namespace atl::coordinator {
namespace {

constexpr kernels::LatentShape kShape{5, 2, kernels::RowType::kBf16};

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
  const float latent[5] = {1.0f, 1.00390625f, -3.0f, 1e-30f, 7.0f};  // 1 + 2^-8: a tie, rounds to 1
  const float k_pe[2] = {0.5f, 0.25f};
  cache.write(1, 1, 63, latent, k_pe);
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
  EXPECT_EQ(KvCache::block_bytes(61, {512, 64, kernels::RowType::kBf16}), 61u * 64 * 576 * 2);
}

}  // namespace
}  // namespace atl::coordinator
