#include "coordinator/cluster/placement_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"

namespace atl::coordinator {
namespace {

using Ranges = std::vector<transport::TileRange>;
using testing::ElementsAre;

TEST(LivePlacement, a_node_that_is_out_leaves_its_tiles_to_who_holds_least) {
  LivePlacement placement(Epoch{5}, {{0, 3}, {1}, {2}});
  EXPECT_THAT(placement.view().tiles_of_node,
              ElementsAre(Ranges{{0, 1}, {3, 4}}, Ranges{{1, 2}}, Ranges{{2, 3}}));
  placement.take_out(1);
  EXPECT_THAT(placement.view().tiles_of_node,
              ElementsAre(Ranges{{0, 1}, {3, 4}}, Ranges{}, Ranges{{1, 3}}));
  EXPECT_EQ(placement.view().epoch, Epoch{6});
  EXPECT_EQ(placement.holder_of(1), 2u);
  EXPECT_TRUE(placement.keeps(2, Ranges{{2, 3}}));
  EXPECT_FALSE(placement.keeps(2, Ranges{{1, 3}}));
}

TEST(LivePlacement, a_node_that_is_back_has_its_own_tiles_again_and_no_others) {
  LivePlacement placement(Epoch{1}, {{0}, {1}, {2}, {3}});
  const auto plan = placement.view().tiles_of_node;
  placement.take_out(1);
  placement.take_out(3);
  placement.put_back(1);
  EXPECT_EQ(placement.view().tiles_of_node[1], (Ranges{{1, 2}}));
  placement.put_back(3);
  EXPECT_EQ(placement.view().tiles_of_node, plan);
  EXPECT_EQ(placement.view().epoch, Epoch{5});
}

TEST(LivePlacement, the_first_that_is_back_when_all_were_out_has_every_tile) {
  LivePlacement placement(Epoch{1}, {{0}, {1}, {}});
  for (const size_t node : {0, 1, 2}) placement.take_out(node);
  placement.put_back(2);
  EXPECT_EQ(placement.view().tiles_of_node[2], (Ranges{{0, 2}}));
  placement.put_back(0);
  EXPECT_EQ(placement.view().tiles_of_node[0], (Ranges{{0, 1}}));
  EXPECT_EQ(placement.view().tiles_of_node[2], (Ranges{{1, 2}}));
}

TEST(LivePlacement, taking_out_or_putting_back_twice_changes_nothing) {
  LivePlacement placement(Epoch{1}, {{0}, {1}});
  placement.put_back(0);
  EXPECT_EQ(placement.view().epoch, Epoch{1});
  placement.take_out(0);
  placement.take_out(0);
  EXPECT_EQ(placement.view().epoch, Epoch{2});
}

TEST(LivePlacement, every_tile_is_at_one_node_which_is_there_if_any_is_whatever_happens) {
  constexpr size_t kNodes = 5;
  LivePlacement placement(Epoch{1}, {{0, 7}, {1, 2}, {3}, {}, {4, 5, 6}});
  for (uint64_t i = 0; i < 2000; ++i) {
    const auto what = static_cast<size_t>(uniform_f32(7, {.position = i}) * 2 * kNodes);
    if (what < kNodes) {
      placement.take_out(what);
    } else {
      placement.put_back(what - kNodes);
    }
    bool any = false;
    for (size_t node = 0; node < kNodes; ++node) any = any || placement.is_there(node);
    std::vector<int> seen(8);
    for (size_t node = 0; node < kNodes; ++node) {
      for (const transport::TileRange& range : placement.view().tiles_of_node[node]) {
        EXPECT_TRUE(placement.is_there(node) || !any);
        for (int tile = range.begin; tile < range.end; ++tile) {
          ++seen[tile];
          EXPECT_EQ(placement.holder_of(tile), node);
        }
      }
    }
    ASSERT_EQ(seen, std::vector<int>(8, 1)) << "after " << i;
  }
}

TEST(LivePlacement, another_plan_raises_the_epoch_by_one_and_keeps_who_is_out_out) {
  LivePlacement placement(Epoch{1}, {{0, 3}, {1}, {2}});
  placement.take_out(1);
  placement.replan({{0, 1}, {}, {2}, {3}});
  EXPECT_EQ(placement.view().epoch, Epoch{3});
  EXPECT_FALSE(placement.is_there(3));  // it has not joined
  EXPECT_EQ(placement.view().tiles_of_node[0], (Ranges{{0, 2}}));
  EXPECT_EQ(placement.view().tiles_of_node[2], (Ranges{{2, 4}}));
  placement.put_back(3);
  EXPECT_EQ(placement.view().tiles_of_node[3], (Ranges{{3, 4}}));
  placement.put_back(1);
  EXPECT_EQ(placement.view().tiles_of_node[1], Ranges{});
}

// ---- With standbys -----------------------------------------------------------------------------

TEST(LivePlacement, a_tile_goes_to_who_stands_by_for_it_and_comes_back) {
  LivePlacement placement(Epoch{1}, {{0, 1}, {2}, {3}}, {{2, 3}, {0}, {1}});
  const PlacementView plan = placement.view();
  EXPECT_EQ(plan.tiles_of_node[0], (Ranges{{0, 2}}));
  EXPECT_EQ(plan.standby_of_node[0], (Ranges{{2, 4}}));
  EXPECT_EQ(plan.num_standby(1), 1);
  placement.take_out(0);
  EXPECT_EQ(placement.view().tiles_of_node[1], (Ranges{{0, 1}, {2, 3}}));
  EXPECT_EQ(placement.view().tiles_of_node[2], (Ranges{{1, 2}, {3, 4}}));
  EXPECT_THAT(placement.view().standby_of_node, testing::Each(Ranges{}));
  EXPECT_TRUE(placement.keeps(1, Ranges{{0, 1}, {2, 3}}));
  EXPECT_FALSE(placement.keeps(1, Ranges{{0, 2}}));
  placement.put_back(0);
  EXPECT_EQ(placement.view().tiles_of_node, plan.tiles_of_node);
  EXPECT_EQ(placement.view().standby_of_node, plan.standby_of_node);
}

TEST(LivePlacement, of_several_who_stand_by_the_one_with_the_least_to_do_is_asked) {
  LivePlacement placement(Epoch{1}, {{0, 1}, {2, 3}, {4}}, {{}, {0, 1}, {0, 1}});
  placement.take_out(0);
  EXPECT_EQ(placement.view().num_tiles(1), 2 + 0 + 1);
  EXPECT_EQ(placement.view().num_tiles(2), 1 + 1);
}

// Owners and who stands by by lot; who is there, too.
TEST(LivePlacement, whoever_keeps_a_tile_and_is_there_is_asked_before_who_does_not) {
  uint64_t at = 0;
  const auto number = [&](int below) {
    return static_cast<int>(uniform_f32(11, {.position = at++}) * static_cast<float>(below));
  };
  for (int i = 0; i < 300; ++i) {
    const int num_nodes = 2 + number(5), num_tiles = 1 + number(12);
    std::vector<std::vector<int>> owned(num_nodes), standby(num_nodes);
    for (int tile = 0; tile < num_tiles; ++tile) {
      const int owner = number(num_nodes), other = number(num_nodes);
      owned[owner].push_back(tile);
      if (other != owner) standby[other].push_back(tile);
    }
    LivePlacement placement(Epoch{1}, owned, standby);
    for (int node = 0; node < num_nodes; ++node) {
      if (number(2) == 0) placement.take_out(static_cast<size_t>(node));
    }
    int asked = 0, any = 0;
    for (int node = 0; node < num_nodes; ++node) {
      asked += placement.view().num_tiles(static_cast<size_t>(node));
      any += placement.is_there(static_cast<size_t>(node)) ? 1 : 0;
    }
    ASSERT_EQ(asked, num_tiles);
    for (int tile = 0; tile < num_tiles; ++tile) {
      bool is_kept = false;
      for (int node = 0; node < num_nodes; ++node) {
        const auto at_node = static_cast<size_t>(node);
        is_kept = is_kept || (placement.is_there(at_node) && placement.keeps(at_node, tile));
      }
      const size_t holder = placement.holder_of(tile);
      ASSERT_TRUE(placement.is_there(holder) || any == 0);
      ASSERT_TRUE(placement.keeps(holder, tile) || !is_kept);
    }
  }
}

}  // namespace
}  // namespace atl::coordinator
