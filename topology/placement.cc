#include "topology/placement.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/result.h"

namespace atl::topology {

Placement equal_placement(int num_tiles, int num_nodes) {
  CHECK_GE(num_nodes, 1);
  std::vector<int> counts(num_nodes);
  for (int node = 0; node < num_nodes; ++node) {
    counts[node] = num_tiles / num_nodes + (node < num_tiles % num_nodes ? 1 : 0);
  }
  return placement_from_counts(num_tiles, counts);
}

Placement placement_from_counts(int num_tiles, const std::vector<int>& counts) {
  const int64_t sum = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const bool negative = std::any_of(counts.begin(), counts.end(), [](int c) { return c < 0; });
  if (sum != num_tiles || negative) {
    throw LoadError(fmt::format(
        "tile counts {} sum up to {}, expected {}: an expert of this model has {} tiles",
        fmt::join(counts, ","), sum, num_tiles, num_tiles));
  }
  Placement placement;
  int next = 0;
  for (const int count : counts) {
    std::vector<int>& tiles = placement.tiles_of_node.emplace_back(count);
    std::iota(tiles.begin(), tiles.end(), next);
    next += count;
  }
  return placement;
}

Placement placement_from_tiles(int num_tiles, std::vector<std::vector<int>> tiles_of_node) {
  std::vector<int> owners(num_tiles, 0);
  for (std::vector<int>& tiles : tiles_of_node) {
    std::sort(tiles.begin(), tiles.end());
    for (const int tile : tiles) {
      if (tile < 0 || tile >= num_tiles) {
        throw LoadError(fmt::format("tile {} does not exist: an expert of this model has {} tiles",
                                    tile, num_tiles));
      }
      ++owners[tile];
    }
  }
  for (int tile = 0; tile < num_tiles; ++tile) {
    if (owners[tile] != 1) {
      throw LoadError(fmt::format("tile {} has {} owners, expected 1", tile, owners[tile]));
    }
  }
  return Placement{Epoch{1}, std::move(tiles_of_node)};
}

std::vector<std::vector<int>> tiles_without(const std::vector<std::vector<int>>& tiles_of_node,
                                            const std::vector<bool>& gone) {
  CHECK_EQ(tiles_of_node.size(), gone.size());
  std::vector<std::vector<int>> tiles = tiles_of_node;
  std::vector<int> orphans;
  std::vector<size_t> heirs;
  for (size_t node = 0; node < tiles.size(); ++node) {
    if (gone[node]) {
      orphans.insert(orphans.end(), tiles[node].begin(), tiles[node].end());
      tiles[node].clear();
    } else if (!tiles[node].empty()) {
      heirs.push_back(node);
    }
  }
  if (heirs.empty()) return tiles_of_node;
  std::sort(orphans.begin(), orphans.end());
  for (const int tile : orphans) {
    // (has + 1) / owns, compared without division.
    const auto burden_less = [&](size_t a, size_t b) {
      return (tiles[a].size() + 1) * tiles_of_node[b].size() <
             (tiles[b].size() + 1) * tiles_of_node[a].size();
    };
    tiles[*std::min_element(heirs.begin(), heirs.end(), burden_less)].push_back(tile);
  }
  for (std::vector<int>& of_node : tiles) std::sort(of_node.begin(), of_node.end());
  return tiles;
}

std::vector<std::vector<int>> Placement::kept_by_node() const {
  std::vector<std::vector<int>> kept = tiles_of_node;
  for (size_t node = 0; node < standby_of_node.size(); ++node) {
    std::vector<int>& tiles = kept[node];
    tiles.insert(tiles.end(), standby_of_node[node].begin(), standby_of_node[node].end());
    std::sort(tiles.begin(), tiles.end());
  }
  return kept;
}

namespace {

// Gives tiles further copies, one level (second copies, third copies) after the other.
class Copies {
 public:
  //   weights  [node] tiles that it owns by the plan; 0: it takes none
  Copies(const Placement& placement, std::vector<int> weights, const std::vector<int>& room)
      : plan_(placement), weights_(std::move(weights)), room_(room) {
    const size_t num_nodes = plan_.tiles_of_node.size();
    plan_.standby_of_node.resize(num_nodes);
    for (size_t node = 0; node < num_nodes; ++node) {
      for (const int tile : plan_.tiles_of_node[node]) {
        if (static_cast<size_t>(tile) >= owner_.size())
          owner_.resize(static_cast<size_t>(tile) + 1);
        owner_[static_cast<size_t>(tile)] = node;
      }
    }
    pairs_.assign(num_nodes, std::vector<int>(num_nodes, 0));
    for (size_t node = 0; node < num_nodes; ++node) {
      for (const int tile : plan_.standby_of_node[node]) {
        ++pairs_[owner_of(tile)][node];
        ++copies_of(tile);
      }
    }
  }

  void fill(int redundancy) {
    for (int copies = 2; copies <= redundancy; ++copies) {
      for (size_t owner = 0; owner < plan_.tiles_of_node.size(); ++owner) {
        for (const int tile : plan_.tiles_of_node[owner]) {
          if (copies_of(tile) >= copies - 1) continue;
          std::vector<bool> tried(plan_.tiles_of_node.size(), false);
          if (place(tile, copies - 1, tried)) ++copies_of(tile);
        }
      }
    }
    for (std::vector<int>& tiles : plan_.standby_of_node) std::sort(tiles.begin(), tiles.end());
  }
  Placement take() { return std::move(plan_); }

 private:
  size_t owner_of(int tile) const { return owner_[static_cast<size_t>(tile)]; }
  int& copies_of(int tile) {  // beside the owner's
    if (static_cast<size_t>(tile) >= copies_.size()) copies_.resize(static_cast<size_t>(tile) + 1);
    return copies_[static_cast<size_t>(tile)];
  }
  bool has_room(size_t node) const {
    return plan_.tiles_of_node[node].size() + plan_.standby_of_node[node].size() <
           static_cast<size_t>(std::max(0, room_[node]));
  }
  bool stands_by(size_t node, int tile) const {
    const std::vector<int>& tiles = plan_.standby_of_node[node];
    return std::find(tiles.begin(), tiles.end(), tile) != tiles.end();
  }
  // `of` tiles shared among all nodes but one, in proportion to their weights.
  double part(size_t node, size_t but, double of) const {
    int64_t all = 0;
    for (size_t other = 0; other < weights_.size(); ++other) {
      if (other != but) all += weights_[other];
    }
    return all == 0 ? 0 : of * weights_[node] / static_cast<double>(all);
  }
  // How much less than its part of all copies a node has, whole parts that are to come counted in.
  double lacks(size_t node, int level) const {
    double lacks = 0;
    for (size_t owner = 0; owner < plan_.tiles_of_node.size(); ++owner) {
      if (owner == node) continue;
      const double wanted =
          part(node, owner, level * static_cast<double>(plan_.tiles_of_node[owner].size()));
      lacks += wanted - std::max<double>(pairs_[owner][node], std::floor(wanted + 1e-9));
    }
    return lacks;
  }

  // Who might keep a copy of the tile, the best one first: whole parts of its owner's tiles, then
  // one more for who lacks most of all, then who has room.
  std::vector<size_t> candidates(int tile, int level) const {
    const size_t owner = owner_of(tile);
    const size_t num_nodes = weights_.size();
    const double of = level * static_cast<double>(plan_.tiles_of_node[owner].size());
    struct Candidate {
      int beyond;
      double lacks;
      size_t distance, node;
    };
    std::vector<Candidate> all;
    for (size_t node = 0; node < num_nodes; ++node) {
      if (node == owner || weights_[node] == 0 || stands_by(node, tile)) continue;
      constexpr double kNoise = 1e-9;
      const double missing = part(node, owner, of) - pairs_[owner][node];
      const int beyond = missing >= 1 - kNoise ? 0 : missing > kNoise ? 1 : 2;
      all.push_back({beyond, lacks(node, level), (node + num_nodes - owner) % num_nodes, node});
    }
    std::stable_sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) {
      if (a.beyond != b.beyond) return a.beyond < b.beyond;
      if (std::abs(a.lacks - b.lacks) > 1e-9) return a.lacks > b.lacks;
      return a.distance < b.distance;
    });
    std::vector<size_t> nodes;
    for (const Candidate& candidate : all) nodes.push_back(candidate.node);
    return nodes;
  }

  // If nobody has room, whoever can give another tile's copy to a third node does: no tile goes
  // without while there is a way (Kuhn's augmenting paths).
  bool place(int tile, int level, std::vector<bool>& tried) {
    const std::vector<size_t> nodes = candidates(tile, level);
    for (const size_t node : nodes) {
      if (tried[node] || !has_room(node)) continue;
      put(node, tile);
      return true;
    }
    for (const size_t node : nodes) {
      if (tried[node]) continue;
      tried[node] = true;
      const std::vector<int> there = plan_.standby_of_node[node];
      for (const int other : there) {
        if (!place(other, level, tried)) continue;
        std::erase(plan_.standby_of_node[node], other);
        --pairs_[owner_of(other)][node];
        put(node, tile);
        return true;
      }
    }
    return false;
  }
  void put(size_t node, int tile) {
    plan_.standby_of_node[node].push_back(tile);
    ++pairs_[owner_of(tile)][node];
  }

  Placement plan_;
  const std::vector<int> weights_;
  const std::vector<int>& room_;
  std::vector<size_t> owner_;            // [tile]
  std::vector<int> copies_;              // [tile]
  std::vector<std::vector<int>> pairs_;  // [owner][node] the owner's tiles that it stands by for
};

std::vector<int> counts_of(const std::vector<std::vector<int>>& tiles_of_node) {
  std::vector<int> counts;
  for (const std::vector<int>& tiles : tiles_of_node)
    counts.push_back(static_cast<int>(tiles.size()));
  return counts;
}

}  // namespace

std::vector<std::vector<int>> standby_tiles(const std::vector<std::vector<int>>& tiles_of_node,
                                            int redundancy, const std::vector<int>& room) {
  CHECK_EQ(tiles_of_node.size(), room.size());
  Copies copies({Epoch{1}, tiles_of_node}, counts_of(tiles_of_node), room);
  copies.fill(redundancy);
  return copies.take().standby_of_node;
}

Redundancy redundancy_of(const Placement& placement, int wanted) {
  std::vector<int> copies;
  for (const std::vector<int>& tiles : placement.kept_by_node()) {
    for (const int tile : tiles) {
      if (static_cast<size_t>(tile) >= copies.size()) copies.resize(static_cast<size_t>(tile) + 1);
      ++copies[static_cast<size_t>(tile)];
    }
  }
  Redundancy redundancy;
  redundancy.num_tiles = static_cast<int>(copies.size());
  for (const int count : copies) {
    redundancy.num_doubled += count >= 2 ? 1 : 0;
    redundancy.num_full += count >= wanted ? 1 : 0;
  }
  return redundancy;
}

Placement placement_without(const Placement& placement, const std::vector<bool>& gone,
                            int redundancy, const std::vector<int>& room) {
  const size_t num_nodes = placement.tiles_of_node.size();
  CHECK(gone.size() == num_nodes && room.size() == num_nodes);
  const bool all_there = std::none_of(gone.begin(), gone.end(), [](bool g) { return g; });
  if (all_there && redundancy == 1) return placement;
  std::vector<int> weights = counts_of(placement.tiles_of_node);
  bool any_left = false;
  for (size_t node = 0; node < num_nodes; ++node) {
    if (gone[node]) weights[node] = 0;
    any_left = any_left || weights[node] > 0;
  }
  if (!any_left) return placement;
  Placement left{placement.epoch, placement.tiles_of_node, placement.standby_of_node};
  left.standby_of_node.resize(num_nodes);
  for (size_t node = 0; node < num_nodes; ++node) {
    if (gone[node]) left.standby_of_node[node].clear();
  }
  // Those that somebody stands by for; what is left to the gone has no other copy.
  for (size_t node = 0; node < num_nodes; ++node) {
    if (!gone[node]) continue;
    std::vector<int> orphans;
    for (const int tile : placement.tiles_of_node[node]) {
      std::optional<size_t> heir;
      for (size_t other = 0; other < num_nodes; ++other) {
        const std::vector<int>& standby = left.standby_of_node[other];
        if (std::find(standby.begin(), standby.end(), tile) == standby.end()) continue;
        if (!heir ||
            (left.tiles_of_node[other].size() + 1) * static_cast<size_t>(weights[*heir]) <
                (left.tiles_of_node[*heir].size() + 1) * static_cast<size_t>(weights[other])) {
          heir = other;
        }
      }
      if (!heir) {
        orphans.push_back(tile);
        continue;
      }
      left.tiles_of_node[*heir].push_back(tile);
      std::erase(left.standby_of_node[*heir], tile);
    }
    left.tiles_of_node[node] = orphans;
  }
  for (std::vector<int>& tiles : left.tiles_of_node) std::sort(tiles.begin(), tiles.end());
  left.tiles_of_node = tiles_without(left.tiles_of_node, gone);
  Copies copies(left, weights, room);
  copies.fill(redundancy);
  return copies.take();
}

}  // namespace atl::topology
