#include "topology/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/result.h"
#include "base/rng.h"

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

// ---- Standbys ----------------------------------------------------------------------------------

// Random shapes: a number of tiles, nodes, and room.
class Shapes {
 public:
  explicit Shapes(uint64_t seed) : seed_(seed) {}
  int number(int least, int most) {
    const double u = uniform_f64(seed_, {.position = next_++});
    return least + static_cast<int>(u * (most - least + 1));
  }
  std::vector<int> counts(int num_tiles, int num_nodes) {
    std::vector<int> counts(static_cast<size_t>(num_nodes), 0);
    for (int tile = 0; tile < num_tiles; ++tile) ++counts[number(0, num_nodes - 1)];
    return counts;
  }

 private:
  const uint64_t seed_;
  uint64_t next_ = 0;
};

std::vector<int> room_for_all(int num_nodes) {
  return std::vector<int>(static_cast<size_t>(num_nodes), kRoomForAll);
}

Placement with_standbys(const std::vector<std::vector<int>>& tiles, int redundancy,
                        const std::vector<int>& room) {
  return {Epoch{1}, tiles, standby_tiles(tiles, redundancy, room)};
}

// [tile] all nodes that keep it; none twice.
std::vector<std::set<size_t>> keepers(const Placement& placement, int num_tiles) {
  std::vector<std::set<size_t>> nodes(static_cast<size_t>(num_tiles));
  const Tiles kept = placement.kept_by_node();
  for (size_t node = 0; node < kept.size(); ++node) {
    EXPECT_TRUE(std::is_sorted(kept[node].begin(), kept[node].end()));
    for (const int tile : kept[node]) {
      EXPECT_TRUE(nodes[static_cast<size_t>(tile)].insert(node).second) << "twice at one node";
    }
  }
  return nodes;
}

int num_shared(const std::vector<int>& a, const std::vector<int>& b) {
  return static_cast<int>(std::count_if(a.begin(), a.end(), [&](int tile) {
    return std::find(b.begin(), b.end(), tile) != b.end();
  }));
}

TEST(Standby, every_tile_has_as_many_keepers_as_wanted_and_all_differ) {
  Shapes shapes(1);
  for (int i = 0; i < 300; ++i) {
    const int num_nodes = shapes.number(2, 9), num_tiles = shapes.number(num_nodes, 40);
    const int redundancy = shapes.number(2, std::min(4, num_nodes));
    const Tiles tiles = equal_placement(num_tiles, num_nodes).tiles_of_node;
    const Placement placement = with_standbys(tiles, redundancy, room_for_all(num_nodes));
    for (const auto& nodes : keepers(placement, num_tiles)) {
      ASSERT_EQ(nodes.size(), static_cast<size_t>(redundancy)) << i;
    }
    const Redundancy reached = redundancy_of(placement, redundancy);
    EXPECT_EQ(reached.num_tiles, num_tiles);
    EXPECT_EQ(reached.num_full, num_tiles);
  }
}

TEST(Standby, one_lost_nodes_tiles_are_spread_over_all_others_within_one_tile) {
  Shapes shapes(2);
  for (int i = 0; i < 300; ++i) {
    const int num_nodes = shapes.number(2, 12), num_tiles = shapes.number(num_nodes, 64);
    const Tiles tiles = equal_placement(num_tiles, num_nodes).tiles_of_node;
    const Tiles standby = standby_tiles(tiles, 2, room_for_all(num_nodes));
    for (size_t lost = 0; lost < tiles.size(); ++lost) {
      // Equal nodes may own one tile more or less, and parts follow what they own.
      int least = num_tiles, most = 0;
      for (size_t node = 0; node < tiles.size(); ++node) {
        if (node == lost) continue;
        const int taken = num_shared(tiles[lost], standby[node]);
        least = std::min(least, taken);
        most = std::max(most, taken);
      }
      const bool all_equal = num_tiles % num_nodes == 0;
      ASSERT_LE(most - least, all_equal ? 1 : 2) << num_tiles << " tiles, " << num_nodes;
    }
    size_t least = 1000, most = 0;
    for (const auto& of_node : standby) {
      least = std::min(least, of_node.size());
      most = std::max(most, of_node.size());
    }
    ASSERT_LE(most - least, 1u) << num_tiles << " tiles, " << num_nodes;
  }
}

TEST(Standby, parts_follow_what_nodes_own_and_who_owns_nothing_stands_by_for_nothing) {
  Shapes shapes(3);
  for (int i = 0; i < 300; ++i) {
    const int num_nodes = shapes.number(2, 8), num_tiles = shapes.number(2, 40);
    const Tiles tiles =
        placement_from_counts(num_tiles, shapes.counts(num_tiles, num_nodes)).tiles_of_node;
    const Tiles standby = standby_tiles(tiles, 2, room_for_all(num_nodes));
    for (size_t lost = 0; lost < tiles.size(); ++lost) {
      const double others =
          static_cast<double>(num_tiles) - static_cast<double>(tiles[lost].size());
      for (size_t node = 0; node < tiles.size(); ++node) {
        const int taken = num_shared(tiles[lost], standby[node]);
        if (tiles[node].empty() || node == lost) {
          ASSERT_EQ(taken, 0);
          continue;
        }
        const double part = static_cast<double>(tiles[lost].size() * tiles[node].size()) / others;
        ASSERT_LT(taken, part + 1) << i;
        ASSERT_GT(taken, part - 1) << i;
      }
    }
  }
}

TEST(Standby, a_nodes_room_is_kept_and_used_as_far_as_it_goes) {
  Shapes shapes(4);
  int some_left_out = 0;
  for (int i = 0; i < 500; ++i) {
    const int num_nodes = shapes.number(2, 6), num_tiles = shapes.number(num_nodes, 24);
    const Tiles tiles = equal_placement(num_tiles, num_nodes).tiles_of_node;
    std::vector<int> room;
    for (int node = 0; node < num_nodes; ++node) room.push_back(shapes.number(0, 12));
    const Placement placement = with_standbys(tiles, 2, room);
    int free = 0;
    for (size_t node = 0; node < tiles.size(); ++node) {
      const int standbys = static_cast<int>(placement.standby_of_node[node].size());
      const int left = std::max(0, room[node] - static_cast<int>(tiles[node].size()));
      ASSERT_LE(standbys, left) << i;
      free += left - standbys;
    }
    const Redundancy reached = redundancy_of(placement, 2);
    if (reached.num_doubled == num_tiles) continue;
    ++some_left_out;
    // Room is left only at nodes that keep all that could go there: what is without a second copy
    // they own themselves.
    for (size_t node = 0; free > 0 && node < tiles.size(); ++node) {
      const size_t kept = tiles[node].size() + placement.standby_of_node[node].size();
      if (static_cast<int>(kept) >= room[node]) continue;
      const auto nodes = keepers(placement, num_tiles);
      for (int tile = 0; tile < num_tiles; ++tile) {
        if (nodes[static_cast<size_t>(tile)].size() == 1) {
          ASSERT_TRUE(nodes[static_cast<size_t>(tile)].contains(node)) << i;
        }
      }
    }
  }
  EXPECT_GT(some_left_out, 50);
}

TEST(Standby, says_how_much_is_covered) {
  const Tiles tiles = equal_placement(6, 3).tiles_of_node;
  const Placement placement = with_standbys(tiles, 3, {2, 4, 3});
  const Redundancy reached = redundancy_of(placement, 3);
  EXPECT_EQ(reached.num_tiles, 6);
  EXPECT_EQ(reached.num_doubled, 3);
  EXPECT_EQ(reached.num_full, 0);
}

TEST(Standby, second_copies_come_before_third_ones) {
  const Tiles tiles = equal_placement(4, 4).tiles_of_node;
  const Placement placement = with_standbys(tiles, 3, {2, 2, 2, 2});
  EXPECT_EQ(redundancy_of(placement, 3).num_doubled, 4);
}

TEST(PlacementWithout, a_lost_nodes_tiles_go_to_who_stands_by_and_copies_are_made_anew) {
  Shapes shapes(5);
  for (int i = 0; i < 300; ++i) {
    const int num_nodes = shapes.number(3, 8), num_tiles = shapes.number(num_nodes, 32);
    const Placement all = with_standbys(equal_placement(num_tiles, num_nodes).tiles_of_node, 2,
                                        room_for_all(num_nodes));
    std::vector<bool> gone(static_cast<size_t>(num_nodes), false);
    gone[shapes.number(0, num_nodes - 1)] = true;
    const Placement left = placement_without(all, gone, 2, room_for_all(num_nodes));
    const auto before = keepers(all, num_tiles), after = keepers(left, num_tiles);
    std::vector<int> owners(static_cast<size_t>(num_tiles), 0);
    for (size_t node = 0; node < gone.size(); ++node) {
      if (gone[node]) {
        ASSERT_TRUE(left.tiles_of_node[node].empty() && left.standby_of_node[node].empty());
      }
      for (const int tile : left.tiles_of_node[node]) {
        ++owners[static_cast<size_t>(tile)];
        ASSERT_TRUE(before[static_cast<size_t>(tile)].contains(node)) << "would have to be read";
      }
    }
    ASSERT_EQ(owners, std::vector<int>(static_cast<size_t>(num_tiles), 1));
    for (const auto& nodes : after) ASSERT_EQ(nodes.size(), 2u);
  }
}

TEST(PlacementWithout, without_standbys_is_as_tiles_without_and_the_same_when_nobody_is_left) {
  const Placement plan{Epoch{3}, {{0, 1, 2}, {3, 4}, {5, 6}}};
  const std::vector<int> room = room_for_all(3);
  EXPECT_EQ(placement_without(plan, {true, false, false}, 1, room).tiles_of_node,
            tiles_without(plan.tiles_of_node, {true, false, false}));
  EXPECT_EQ(placement_without(plan, {true, true, true}, 1, room), plan);
  EXPECT_EQ(placement_without(plan, {false, false, false}, 1, room), plan);
}

}  // namespace
}  // namespace atl::topology
