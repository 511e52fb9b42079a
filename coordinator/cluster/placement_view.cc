#include "coordinator/cluster/placement_view.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace atl::coordinator {

std::vector<transport::TileRange> to_ranges(const std::vector<int>& tiles) {
  std::vector<transport::TileRange> ranges;
  for (const int tile : tiles) {
    if (!ranges.empty() && ranges.back().end == tile) {
      ++ranges.back().end;
    } else {
      ranges.push_back({static_cast<uint16_t>(tile), static_cast<uint16_t>(tile + 1)});
    }
  }
  return ranges;
}

int count_tiles(std::span<const transport::TileRange> tiles) {
  int count = 0;
  for (const transport::TileRange& range : tiles) count += range.end - range.begin;
  return count;
}

int PlacementView::num_tiles(size_t node) const { return count_tiles(tiles_of_node[node]); }
int PlacementView::num_standby(size_t node) const { return count_tiles(standby_of_node[node]); }

LivePlacement::LivePlacement(Epoch epoch, std::vector<std::vector<int>> owned,
                             std::vector<std::vector<int>> standby)
    : owned_(std::move(owned)), standby_(std::move(standby)), there_(owned_.size(), true) {
  CHECK(!owned_.empty() && standby_.size() <= owned_.size());
  standby_.resize(owned_.size());
  rebuild();
  view_.epoch = epoch;
}

void LivePlacement::take_out(size_t node) {
  CHECK_LT(node, there_.size());
  if (!there_[node]) return;
  there_[node] = false;
  rebuild();
  ++view_.epoch.value;
}

void LivePlacement::put_back(size_t node) {
  CHECK_LT(node, there_.size());
  if (there_[node]) return;
  there_[node] = true;
  rebuild();
  ++view_.epoch.value;
}

void LivePlacement::replan(std::vector<std::vector<int>> owned,
                           std::vector<std::vector<int>> standby) {
  CHECK(owned.size() >= owned_.size() && standby.size() <= owned.size());
  owned_ = std::move(owned);
  standby_ = std::move(standby);
  standby_.resize(owned_.size());
  there_.resize(owned_.size(), false);
  rebuild();
  ++view_.epoch.value;
}

bool LivePlacement::keeps(size_t node, int tile) const {
  return std::binary_search(owned_[node].begin(), owned_[node].end(), tile) ||
         std::binary_search(standby_[node].begin(), standby_[node].end(), tile);
}

bool LivePlacement::keeps(size_t node, std::span<const transport::TileRange> tiles) const {
  return std::all_of(tiles.begin(), tiles.end(), [&](const transport::TileRange& range) {
    for (int tile = range.begin; tile < range.end; ++tile) {
      if (!keeps(node, tile)) return false;
    }
    return true;
  });
}

size_t LivePlacement::holder_of(int tile) const { return holder_.at(static_cast<size_t>(tile)); }

void LivePlacement::rebuild() {
  const size_t num_nodes = owned_.size();
  size_t num_tiles = 0;
  for (const std::vector<int>& tiles : owned_) num_tiles += tiles.size();
  std::vector<std::vector<int>> held(num_nodes);
  holder_.assign(num_tiles, num_nodes);
  const auto give = [&](int tile, size_t node) {
    CHECK_EQ(holder_.at(static_cast<size_t>(tile)), num_nodes);  // every tile has one owner
    holder_[static_cast<size_t>(tile)] = node;
    held[node].push_back(tile);
  };
  const auto least = [&](const auto& may) {
    size_t best = num_nodes;
    for (size_t node = 0; node < num_nodes; ++node) {
      const bool is_better = best == num_nodes || held[node].size() < held[best].size();
      if (there_[node] && may(node) && is_better) best = node;
    }
    return best;
  };
  for (size_t owner = 0; owner < num_nodes; ++owner) {
    for (const int tile : owned_[owner]) {
      if (there_[owner]) give(tile, owner);
    }
  }
  std::vector<std::vector<int>> orphans(num_nodes);  // [owner]
  for (size_t owner = 0; owner < num_nodes; ++owner) {
    for (const int tile : owned_[owner]) {
      if (there_[owner]) continue;
      const size_t keeper = least([&](size_t node) { return keeps(node, tile); });
      if (keeper < num_nodes) {
        give(tile, keeper);
      } else {
        orphans[owner].push_back(tile);
      }
    }
  }
  for (size_t owner = 0; owner < num_nodes; ++owner) {
    const size_t other = least([](size_t) { return true; });
    for (const int tile : orphans[owner]) give(tile, other < num_nodes ? other : owner);
  }
  view_.tiles_of_node.assign(num_nodes, {});
  view_.standby_of_node.assign(num_nodes, {});
  for (size_t node = 0; node < num_nodes; ++node) {
    std::sort(held[node].begin(), held[node].end());
    view_.tiles_of_node[node] = to_ranges(held[node]);
    if (!there_[node]) continue;
    std::vector<int> kept;
    for (size_t tile = 0; tile < num_tiles; ++tile) {
      if (holder_[tile] != node && keeps(node, static_cast<int>(tile))) {
        kept.push_back(static_cast<int>(tile));
      }
    }
    view_.standby_of_node[node] = to_ranges(kept);
  }
}

}  // namespace atl::coordinator
