#include "topology/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/result.h"

namespace atl::topology {
namespace {

using Tiles = std::vector<std::vector<int>>;

TEST(Placement, equal_nodes_get_shares_that_differ_by_at_most_one_tile) {
  EXPECT_EQ(equal_placement(16, 4).tiles_of_node,
            (Tiles{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}}));
  EXPECT_EQ(equal_placement(11, 3).tiles_of_node, (Tiles{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10}}));
}

TEST(Placement, surplus_nodes_own_nothing) {
  EXPECT_EQ(equal_placement(2, 4).tiles_of_node, (Tiles{{0}, {1}, {}, {}}));
}

TEST(Placement, counts_make_contiguous_ranges_and_may_be_zero) {
  EXPECT_EQ(placement_from_counts(4, {3, 0, 1}).tiles_of_node, (Tiles{{0, 1, 2}, {}, {3}}));
}

TEST(Placement, counts_that_do_not_sum_up_are_refused_with_both_numbers) {
  try {
    placement_from_counts(16, {7, 5, 3});
    FAIL() << "accepted";
  } catch (const LoadError& error) {
    EXPECT_STREQ(
        error.what(),
        "tile counts 7,5,3 sum up to 15, expected 16: an expert of this model has 16 tiles");
  }
  EXPECT_THROW(placement_from_counts(4, {6, -2}), LoadError);
}

TEST(Placement, scattered_tiles_are_sorted_and_each_must_have_one_owner) {
  EXPECT_EQ(placement_from_tiles(4, {{3, 0}, {2, 1}}).tiles_of_node, (Tiles{{0, 3}, {1, 2}}));
  EXPECT_THROW(placement_from_tiles(4, {{0, 1}, {1, 2, 3}}), LoadError);
  EXPECT_THROW(placement_from_tiles(4, {{0, 1}, {3}}), LoadError);
  EXPECT_THROW(placement_from_tiles(4, {{0, 1, 2, 3, 4}}), LoadError);
}

TEST(TilesWithout, spread_a_gone_nodes_tiles_over_all_others) {
  EXPECT_EQ(tiles_without({{0, 1, 2}, {3, 4}, {5, 6}}, {true, false, false}),
            (Tiles{{}, {0, 2, 3, 4}, {1, 5, 6}}));
  EXPECT_EQ(tiles_without({{0, 1}, {2, 3}, {}}, {true, false, false}),
            (Tiles{{}, {0, 1, 2, 3}, {}}));
}

TEST(TilesWithout, give_more_to_who_owns_more) {
  EXPECT_EQ(tiles_without({{0, 1, 2}, {3, 4, 5, 6}, {7, 8}}, {true, false, false}),
            (Tiles{{}, {0, 1, 3, 4, 5, 6}, {2, 7, 8}}));
}

TEST(TilesWithout, are_as_planned_when_nobody_is_gone_or_nobody_is_left) {
  const Tiles plan = {{0, 1}, {2}, {}};
  EXPECT_EQ(tiles_without(plan, {false, false, false}), plan);
  EXPECT_EQ(tiles_without(plan, {true, true, true}), plan);
  EXPECT_EQ(tiles_without(plan, {true, true, false}), plan);
}

}  // namespace
}  // namespace atl::topology
