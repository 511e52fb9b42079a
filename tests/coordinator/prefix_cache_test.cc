#include "coordinator/engine/prefix_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <random>
#include <set>

namespace atl::coordinator {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr CacheShape kShape{1, 7, kernels::RowType::kBf16};
constexpr int64_t kBlock = PrefixCache::kBlock;

// n blocks of tokens that tell where they begin.
std::vector<int32_t> tokens_from(int32_t first, int64_t num_blocks) {
  std::vector<int32_t> tokens(static_cast<size_t>(num_blocks * kBlock));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

class PrefixCacheTest : public testing::Test {
 protected:
  // Takes blocks for the whole blocks of `tokens`, as one who computes them all.
  std::vector<BlockId> compute(const std::vector<int32_t>& tokens) {
    std::vector<BlockId> blocks;
    PrefixCache::Prefix prefix = 0;
    for (size_t at = 0; at + kBlock <= tokens.size(); at += kBlock) {
      auto block = prefixes_.allocate();
      if (!block) {
        ADD_FAILURE() << block.error().message;
        return blocks;
      }
      blocks.push_back(*block);
      prefix = prefixes_.publish(prefix, std::span(tokens).subspan(at, kBlock), *block);
    }
    return blocks;
  }
  // Matches, and lets go at once.
  std::vector<BlockId> known(std::vector<int32_t> tokens) {
    tokens.push_back(-1);  // the one to be computed
    PrefixCache::Prefix prefix = 0;
    std::vector<BlockId> blocks = prefixes_.match(tokens, &prefix);
    prefixes_.release(blocks);
    return blocks;
  }

  KvCache cache_{1, kShape, 6};
  PrefixCache prefixes_{cache_};
};

TEST_F(PrefixCacheTest, finds_the_longest_prefix_of_whole_blocks) {
  const std::vector<int32_t> tokens = tokens_from(0, 3);
  const std::vector<BlockId> blocks = compute(tokens);
  EXPECT_EQ(known(tokens), blocks);
  std::vector<int32_t> other = tokens;
  other[2 * kBlock] = 7;  // the third block differs
  EXPECT_THAT(known(other), ElementsAre(blocks[0], blocks[1]));
  other[0] = 7;
  EXPECT_THAT(known(other), IsEmpty());
  // The second block alone is no prefix.
  EXPECT_THAT(known(tokens_from(kBlock, 1)), IsEmpty());
}

TEST_F(PrefixCacheTest, leaves_a_token_to_compute) {
  const std::vector<int32_t> tokens = tokens_from(0, 2);
  const std::vector<BlockId> blocks = compute(tokens);
  PrefixCache::Prefix prefix = 0;
  EXPECT_THAT(prefixes_.match(tokens, &prefix), ElementsAre(blocks[0]));
  EXPECT_THAT(prefixes_.match(std::span(tokens).first(kBlock), &prefix), IsEmpty());
  EXPECT_EQ(prefix, 0u);
}

TEST_F(PrefixCacheTest,
       keeps_released_blocks_until_their_room_is_needed_the_last_ones_first_to_go) {
  const std::vector<int32_t> a = tokens_from(0, 2), b = tokens_from(1000, 2);
  const std::vector<BlockId> blocks_a = compute(a), blocks_b = compute(b);
  EXPECT_EQ(prefixes_.held(), 4);
  prefixes_.release(blocks_a);
  prefixes_.release(blocks_b);
  EXPECT_EQ(prefixes_.held(), 0);
  EXPECT_EQ(prefixes_.kept(), 4);
  EXPECT_EQ(prefixes_.available(), 6);
  EXPECT_EQ(known(a), blocks_a);  // b is now used less recently
  std::vector<BlockId> own;
  for (int i = 0; i < 3; ++i) own.push_back(*prefixes_.allocate());  // two free ones, one kept
  EXPECT_EQ(prefixes_.evictions(), 1u);
  EXPECT_THAT(known(b), ElementsAre(blocks_b[0]));
  EXPECT_EQ(known(a), blocks_a);
  for (int i = 0; i < 3; ++i) own.push_back(*prefixes_.allocate());
  EXPECT_THAT(known(a), IsEmpty());
  auto none = prefixes_.allocate();
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kOverloaded);
  prefixes_.release(own);
  EXPECT_EQ(prefixes_.available(), 6);
  EXPECT_EQ(prefixes_.kept(), 0);
}

TEST_F(PrefixCacheTest, blocks_held_by_two_go_with_the_second) {
  const std::vector<int32_t> tokens = tokens_from(0, 2);
  const std::vector<BlockId> blocks = compute(tokens);
  PrefixCache::Prefix prefix = 0;
  const std::vector<BlockId> shared = prefixes_.match(tokens, &prefix);
  ASSERT_THAT(shared, ElementsAre(blocks[0]));
  prefixes_.release(blocks);
  EXPECT_EQ(prefixes_.held(), 1);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(prefixes_.allocate());
  EXPECT_FALSE(prefixes_.allocate());  // the shared one stays
  EXPECT_THAT(known(std::vector<int32_t>(tokens.begin(), tokens.begin() + kBlock)),
              ElementsAre(blocks[0]));
}

TEST_F(PrefixCacheTest, of_two_that_computed_the_same_one_is_known_and_both_go_on_from_it) {
  const std::vector<int32_t> tokens = tokens_from(0, 1), next = tokens_from(500, 1);
  const BlockId first = *prefixes_.allocate(), second = *prefixes_.allocate();
  const PrefixCache::Prefix after_first = prefixes_.publish(0, tokens, first);
  EXPECT_EQ(prefixes_.publish(0, tokens, second), after_first);
  const BlockId child = *prefixes_.allocate();
  prefixes_.publish(after_first, next, child);
  std::vector<int32_t> both = tokens;
  both.insert(both.end(), next.begin(), next.end());
  EXPECT_THAT(known(both), ElementsAre(first, child));
  const std::vector<BlockId> of_second = {second};
  prefixes_.release(of_second);
  EXPECT_EQ(prefixes_.kept(), 0);  // nobody knows it: free
  EXPECT_EQ(cache_.free_blocks(), 4);
}

// The block before it is gone and its room taken: what came after must not be found behind the
// newcomer.
TEST_F(PrefixCacheTest, what_followed_a_block_that_is_gone_stays_unknown) {
  const std::vector<int32_t> tokens = tokens_from(0, 2);
  const std::vector<BlockId> blocks = compute(tokens);
  const std::vector<BlockId> parent = {blocks[0]}, child = {blocks[1]};
  prefixes_.release(parent);  // the child is still held, as by one who computed its own parent
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(prefixes_.allocate());
  EXPECT_EQ(prefixes_.evictions(), 1u);
  EXPECT_THAT(known(tokens), IsEmpty());
  prefixes_.release(child);
  EXPECT_THAT(known(tokens), IsEmpty());
}

TEST_F(PrefixCacheTest, clear_frees_what_nobody_holds) {
  const std::vector<BlockId> a = compute(tokens_from(0, 2)), b = compute(tokens_from(900, 1));
  prefixes_.release(a);
  prefixes_.clear();
  EXPECT_EQ(prefixes_.kept(), 0);
  EXPECT_EQ(cache_.free_blocks(), 5);
  EXPECT_THAT(known(tokens_from(900, 1)), ElementsAre(b[0]));
}

// Random prompts over few tokens, so that many begin alike; after each operation the counts agree
// and every hit holds the tokens that were computed into its blocks.
TEST_F(PrefixCacheTest, counts_and_contents_hold_under_random_use) {
  std::mt19937 random(7);
  std::map<BlockId, std::vector<int32_t>> content;  // all tokens up to the block's end
  std::vector<std::vector<BlockId>> held;
  for (int round = 0; round < 3000; ++round) {
    if (!held.empty() && random() % 2) {
      const size_t which = random() % held.size();
      prefixes_.release(held[which]);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(which));
    } else {
      std::vector<int32_t> tokens;
      for (int block = 0; block < 3; ++block) {
        tokens.insert(tokens.end(), kBlock, static_cast<int32_t>(random() % 2));
      }
      tokens.push_back(9);
      PrefixCache::Prefix prefix = 0;
      std::vector<BlockId> blocks = prefixes_.match(tokens, &prefix);
      for (size_t b = 0; b < blocks.size(); ++b) {
        ASSERT_EQ(content[blocks[b]],
                  std::vector<int32_t>(tokens.begin(),
                                       tokens.begin() + static_cast<int64_t>(b + 1) * kBlock));
      }
      while (blocks.size() < 3) {
        auto block = prefixes_.allocate();
        if (!block) break;
        const size_t at = blocks.size() * kBlock;
        content[*block].assign(tokens.begin(), tokens.begin() + static_cast<int64_t>(at) + kBlock);
        prefix = prefixes_.publish(prefix, std::span(tokens).subspan(at, kBlock), *block);
        blocks.push_back(*block);
      }
      held.push_back(std::move(blocks));
    }
    std::set<BlockId> in_use;
    for (const auto& blocks : held) in_use.insert(blocks.begin(), blocks.end());
    ASSERT_EQ(prefixes_.held(), static_cast<int64_t>(in_use.size()));
  }
  EXPECT_GT(prefixes_.evictions(), 50u);
}

}  // namespace
}  // namespace atl::coordinator
