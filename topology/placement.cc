#include "topology/placement.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

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

}  // namespace atl::topology
