// Who goes when room is needed, and what is counted.
#include "storage/tiles/expert_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace atl::storage {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using State = ExpertCache::TileState;

constexpr int kTiles = 2;

// Makes both tiles of an expert resident; there must be free slots.
void bring(ExpertCache& cache, size_t expert) {
  for (int tile = 0; tile < kTiles; ++tile) {
    cache.start_reading(expert, tile);
    cache.end_reading(expert, tile, State::kHere);
  }
}

std::vector<size_t> evict(ExpertCache& cache, size_t slots) {
  std::vector<size_t> gone;
  EXPECT_TRUE(cache.make_room(slots, &gone));
  return gone;
}

TEST(ExpertCache, least_recently_used_goes_first) {
  ExpertCache cache(4, kTiles, 8, Eviction::kLru, 100);
  for (size_t expert = 0; expert < 4; ++expert) bring(cache, expert);
  for (const size_t expert : {2u, 0u, 3u, 1u, 2u}) {
    cache.tick();
    cache.use(expert);
  }
  EXPECT_THAT(evict(cache, 3), ElementsAre(0, 3));  // whole experts: 4 slots
  EXPECT_EQ(cache.free_slots(), 4u);
  EXPECT_EQ(cache.evictions(), 2u);
  EXPECT_EQ(cache.state(0, 1), State::kAbsent);
  EXPECT_EQ(cache.state(1, 1), State::kHere);
}

TEST(ExpertCache, least_recently_used_goes_first_however_often_it_was_used) {
  ExpertCache cache(2, kTiles, 4, Eviction::kLru, 100);
  bring(cache, 0);
  bring(cache, 1);
  for (const size_t expert : {0u, 0u, 0u, 1u}) {
    cache.tick();
    cache.use(expert);
  }
  EXPECT_THAT(evict(cache, 1), ElementsAre(0));
}

TEST(ExpertCache, least_frequently_used_goes_first) {
  ExpertCache cache(3, kTiles, 6, Eviction::kLfu, 1000);
  for (size_t expert = 0; expert < 3; ++expert) bring(cache, expert);
  for (const size_t expert : {0u, 0u, 0u, 2u, 2u, 1u}) {
    cache.tick();
    cache.use(expert);
  }
  EXPECT_THAT(evict(cache, 1), ElementsAre(1));
  EXPECT_THAT(evict(cache, 3), ElementsAre(2));
}

TEST(ExpertCache, uses_lose_half_of_their_weight_in_a_half_life) {
  ExpertCache cache(2, kTiles, 4, Eviction::kLfu, 10);
  bring(cache, 0);
  bring(cache, 1);
  for (int i = 0; i < 3; ++i) cache.use(0);
  EXPECT_DOUBLE_EQ(cache.uses(0), 3);
  for (int i = 0; i < 10; ++i) cache.tick();
  EXPECT_NEAR(cache.uses(0), 1.5, 1e-9);
  cache.use(1);
  cache.use(1);  // two now outweigh three a half-life ago
  EXPECT_THAT(evict(cache, 1), ElementsAre(0));
}

TEST(ExpertCache, weights_stay_finite_and_in_order_for_ever) {
  ExpertCache cache(3, kTiles, 6, Eviction::kLfu, 1);
  for (size_t expert = 0; expert < 3; ++expert) bring(cache, expert);
  for (int i = 0; i < 5000; ++i) {
    cache.tick();
    cache.use(1);
    if (i % 2 == 0) cache.use(0);
  }
  EXPECT_NEAR(cache.uses(1), 2, 1e-6);
  EXPECT_LT(cache.uses(0), cache.uses(1));
  EXPECT_THAT(evict(cache, 4), ElementsAre(2, 0));
}

TEST(ExpertCache, pinned_and_unread_experts_stay) {
  ExpertCache cache(3, kTiles, 6, Eviction::kLru, 100);
  bring(cache, 0);
  bring(cache, 1);
  cache.start_reading(2, 0);
  cache.pin(0);
  cache.pin(0);
  cache.unpin(0);
  std::vector<size_t> gone;
  EXPECT_FALSE(cache.make_room(4, &gone));  // only expert 1 may go
  EXPECT_THAT(gone, IsEmpty());
  EXPECT_EQ(cache.state(1, 0), State::kHere);
  EXPECT_THAT(evict(cache, 3), ElementsAre(1));
  cache.end_reading(2, 0, State::kHere);
  cache.unpin(0);
  EXPECT_THAT(evict(cache, 6), ElementsAre(0, 2));
}

TEST(ExpertCache, what_was_not_read_gives_its_slot_back) {
  ExpertCache cache(1, kTiles, 2, Eviction::kLru, 100);
  cache.start_reading(0, 0);
  cache.start_reading(0, 1);
  EXPECT_TRUE(cache.is_reading(0));
  cache.end_reading(0, 0, State::kAbsent);
  cache.end_reading(0, 1, State::kBad);
  EXPECT_FALSE(cache.is_reading(0));
  EXPECT_EQ(cache.free_slots(), 2u);
  EXPECT_EQ(cache.slot(0, 0), -1);
  EXPECT_EQ(cache.state(0, 1), State::kBad);
  EXPECT_EQ(cache.evictable_slots(), 0u);
}

TEST(ExpertCache, no_slot_holds_two_tiles) {
  ExpertCache cache(50, kTiles, 20, Eviction::kLfu, 50);
  uint64_t random = 1;
  for (int step = 0; step < 2000; ++step) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    const size_t expert = (random >> 33) % 50;
    cache.tick();
    cache.use(expert);
    if (cache.state(expert, 0) == State::kAbsent) {
      std::vector<size_t> gone;
      ASSERT_TRUE(cache.make_room(kTiles, &gone));
      bring(cache, expert);
    }
    std::set<int32_t> slots;
    size_t held = 0;
    for (size_t e = 0; e < 50; ++e) {
      for (int tile = 0; tile < kTiles; ++tile) {
        if (cache.slot(e, tile) < 0) continue;
        slots.insert(cache.slot(e, tile));
        ++held;
      }
    }
    ASSERT_EQ(slots.size(), held);
    ASSERT_EQ(held + cache.free_slots(), 20u);
    ASSERT_EQ(cache.evictable_slots(), held);
  }
}

}  // namespace
}  // namespace atl::storage
