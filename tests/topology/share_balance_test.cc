#include "topology/share_balance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/clock.h"
#include "base/rng.h"
#include "topology/placement.h"

namespace atl::topology {
namespace {

using Tiles = std::vector<std::vector<int>>;
constexpr auto kLookEvery = std::chrono::seconds(2);

// A cluster whose dispatches take each node so long, looked at on a clock that is advanced: a
// constant of its link and a part for each tile.
class World {
 public:
  World(int num_tiles, int num_nodes, int redundancy)
      : base_(equal_placement(num_tiles, num_nodes)),
        link_(static_cast<size_t>(num_nodes), 100e-6),
        tile_(static_cast<size_t>(num_nodes), 1e-3) {
    const auto nodes = static_cast<size_t>(num_nodes);
    base_.standby_of_node =
        standby_tiles(base_.tiles_of_node, redundancy, std::vector<int>(nodes, kRoomForAll));
    balancer_.set_plan(base_.tiles_of_node, base_.kept_by_node(),
                       std::vector<int>(nodes, redundancy > 1 ? 0 : num_tiles));
  }
  double time(size_t node, size_t tiles) const {
    return tiles == 0 ? 0 : link_[node] + tile_[node] * static_cast<double>(tiles);
  }
  // Of a dispatch: the slowest node's.
  double longest() const {
    double longest = 0;
    for (size_t n = 0; n < link_.size(); ++n) {
      longest = std::max(longest, time(n, balancer_.tiles()[n].size()));
    }
    return longest;
  }
  double noise(double amount) {
    return 1 + amount * (2 * uniform_f64(seed_, {.position = next_++}) - 1);
  }
  // A look; whether something moved.
  bool look(double amount = 0) {
    clock_.advance(kLookEvery);
    std::vector<MeasuredNode> nodes;
    for (size_t n = 0; n < link_.size(); ++n) {
      const size_t tiles = balancer_.tiles()[n].size(), own = balancer_.plan()[n].size();
      MeasuredNode& node = nodes.emplace_back();
      node.is_there = is_there_;
      node.answers = tiles == 0 ? 0 : 100;
      if (tiles > 0) {
        node.seconds_per_tile = time(n, tiles) / static_cast<double>(tiles) * noise(amount);
      }
      if (tiles < own) node.planned_seconds = time(n, own) * noise(amount);
    }
    return balancer_.look(nodes);
  }
  // Until something has moved, or so long: when that was.
  std::chrono::nanoseconds until_moved(std::chrono::seconds longest, double amount = 0) {
    const auto start = clock_.now();
    while (clock_.now() - start < longest) {
      if (look(amount)) break;
    }
    return clock_.now() - start;
  }

  Placement base_;
  std::vector<double> link_, tile_;  // [node] seconds
  ShareBalancer balancer_;
  ManualClock clock_;
  bool is_there_ = true;
  uint64_t seed_ = 1, next_ = 0;
};

TEST(ShareBalance, equal_nodes_keep_the_plan_whatever_the_noise) {
  for (const int nodes : {3, 4}) {
    World world(16, nodes, 2);
    for (int i = 0; i < 2000; ++i) ASSERT_FALSE(world.look(0.1)) << i;
  }
}

TEST(ShareBalance, a_node_with_a_fifth_of_its_cpu_loses_tiles_within_30_s_and_gets_them_back) {
  for (const int redundancy : {1, 2}) {
    World world(16, 4, redundancy);
    const double before = world.longest();
    world.tile_[1] *= 5;
    EXPECT_LE(world.until_moved(std::chrono::seconds(60), 0.1), std::chrono::seconds(30));
    EXPECT_LT(world.balancer_.tiles()[1].size(), 4u);
    for (int i = 0; i < 20; ++i) world.look(0.1);
    EXPECT_LE(world.longest(), 1.4 * before) << "redundancy " << redundancy;
    world.tile_[1] /= 5;
    EXPECT_LE(world.until_moved(std::chrono::seconds(60), 0.1), std::chrono::seconds(30));
    EXPECT_TRUE(world.balancer_.is_as_planned());
  }
}

TEST(ShareBalance, a_node_behind_a_slow_link_loses_all_tiles_and_gets_them_back) {
  World world(16, 4, 2);
  world.link_[2] = 30e-3;  // whatever it is asked for
  for (int i = 0; i < 15; ++i) world.look(0.05);
  EXPECT_TRUE(world.balancer_.tiles()[2].empty());
  EXPECT_LT(world.longest(), 7e-3);
  for (int i = 0; i < 100; ++i) ASSERT_FALSE(world.look(0.05)) << "it is still slow";
  world.link_[2] = 100e-6;
  EXPECT_LE(world.until_moved(std::chrono::seconds(60), 0.05), std::chrono::seconds(30));
  EXPECT_TRUE(world.balancer_.is_as_planned());
}

TEST(ShareBalance, a_short_pause_moves_nothing) {
  World world(16, 4, 2);
  for (int i = 0; i < 50; ++i) {
    world.tile_[1] = 50e-3;
    ASSERT_FALSE(world.look());
    ASSERT_FALSE(world.look());
    world.tile_[1] = 1e-3;
    ASSERT_FALSE(world.look());
  }
}

// Between the two thresholds nothing moves to and fro.
TEST(ShareBalance, no_speed_makes_tiles_go_to_and_fro) {
  for (double slower = 1; slower < 12; slower *= 1.07) {
    for (const int redundancy : {1, 2}) {
      World world(16, 4, redundancy);
      world.tile_[3] *= slower;
      for (int i = 0; i < 30; ++i) world.look();
      int moves = 0;
      for (int i = 0; i < 200; ++i) moves += world.look() ? 1 : 0;
      EXPECT_EQ(moves, 0) << "a node " << slower << " times as slow";
    }
  }
}

TEST(ShareBalance, gains_that_are_too_small_to_matter_move_nothing) {
  World world(16, 4, 2);
  std::fill(world.tile_.begin(), world.tile_.end(), 10e-6);
  world.tile_[0] = 50e-6;
  for (int i = 0; i < 50; ++i) ASSERT_FALSE(world.look());
}

TEST(ShareBalance, nothing_moves_while_a_node_is_not_there) {
  World world(16, 4, 2);
  world.tile_[1] *= 10;
  world.is_there_ = false;
  for (int i = 0; i < 50; ++i) ASSERT_FALSE(world.look());
}

TEST(ShareBalance, without_standbys_tiles_move_only_where_there_is_room) {
  ShareBalancer balancer;
  balancer.set_plan({{0, 1}, {2, 3}, {4, 5}}, {{0, 1}, {2, 3}, {4, 5}}, {2, 2, 3});
  for (int i = 0; i < 10; ++i) {
    balancer.look({{true, 9, 50e-3}, {true, 9, 1e-3}, {true, 9, 1e-3}});
  }
  EXPECT_EQ(balancer.tiles(), (Tiles{{1}, {2, 3}, {0, 4, 5}}));
}

// Any plan, any speeds: every tile at one node, which keeps it or has room.
TEST(ShareBalance, every_tile_stays_at_one_node_that_may_have_it) {
  uint64_t at = 0;
  const auto number = [&](int least, int most) {
    return least + static_cast<int>(uniform_f64(9, {.position = at++}) * (most - least + 1));
  };
  int moves = 0;
  for (int round = 0; round < 200; ++round) {
    const int num_nodes = number(2, 6), num_tiles = number(num_nodes, 20);
    World world(num_tiles, num_nodes, number(1, 2));
    const Tiles kept = world.base_.kept_by_node();
    const bool is_redundant = world.base_.kept_by_node() != world.base_.tiles_of_node;
    for (int i = 0; i < 30; ++i) {
      if (number(0, 5) == 0) {
        world.tile_[static_cast<size_t>(number(0, num_nodes - 1))] = 1e-3 * number(1, 12);
      }
      moves += world.look(0.2) ? 1 : 0;
      std::vector<int> seen;
      for (size_t n = 0; n < kept.size(); ++n) {
        const std::vector<int>& tiles = world.balancer_.tiles()[n];
        ASSERT_TRUE(std::is_sorted(tiles.begin(), tiles.end()));
        seen.insert(seen.end(), tiles.begin(), tiles.end());
        if (!is_redundant) continue;
        ASSERT_TRUE(std::includes(kept[n].begin(), kept[n].end(), tiles.begin(), tiles.end()));
      }
      std::sort(seen.begin(), seen.end());
      std::vector<int> all(static_cast<size_t>(num_tiles));
      std::iota(all.begin(), all.end(), 0);
      ASSERT_EQ(seen, all);
    }
  }
  EXPECT_GT(moves, 100);
}

}  // namespace
}  // namespace atl::topology
