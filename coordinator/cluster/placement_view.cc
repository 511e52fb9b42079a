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

int PlacementView::num_tiles(size_t node) const {
  int count = 0;
  for (const transport::TileRange& range : tiles_of_node[node]) count += range.end - range.begin;
  return count;
}

LivePlacement::LivePlacement(Epoch epoch, std::vector<std::vector<int>> owned)
    : owned_(std::move(owned)), there_(owned_.size(), true) {
  CHECK(!owned_.empty());
  for (size_t node = 0; node < owned_.size(); ++node) holder_.push_back(node);
  rebuild();
  view_.epoch = epoch;
}

void LivePlacement::take_out(size_t node) {
  CHECK_LT(node, there_.size());
  if (!there_[node]) return;
  there_[node] = false;
  for (size_t owner = 0; owner < owned_.size(); ++owner) {
    if (holder_[owner] != node) continue;
    for (size_t other = 0; other < owned_.size(); ++other) {
      const size_t holder = holder_[owner];
      if (there_[other] && (!there_[holder] || view_.num_tiles(other) < view_.num_tiles(holder))) {
        holder_[owner] = other;
      }
    }
    rebuild();
  }
  ++view_.epoch.value;
}

void LivePlacement::put_back(size_t node) {
  CHECK_LT(node, there_.size());
  if (there_[node]) return;
  there_[node] = true;
  for (size_t owner = 0; owner < owned_.size(); ++owner) {
    if (owner == node || !there_[holder_[owner]]) holder_[owner] = node;
  }
  rebuild();
  ++view_.epoch.value;
}

void LivePlacement::replan(std::vector<std::vector<int>> owned) {
  CHECK(owned.size() >= owned_.size());
  const Epoch next{view_.epoch.value + 1};
  owned_ = std::move(owned);
  holder_.resize(owned_.size());
  for (size_t node = 0; node < owned_.size(); ++node) holder_[node] = node;
  std::vector<bool> were_there = std::exchange(there_, std::vector<bool>(owned_.size(), true));
  were_there.resize(owned_.size(), false);
  rebuild();
  for (size_t node = 0; node < owned_.size(); ++node) {
    if (!were_there[node]) take_out(node);
  }
  view_.epoch = next;
}

bool LivePlacement::owns(size_t node, std::span<const transport::TileRange> tiles) const {
  return std::all_of(tiles.begin(), tiles.end(), [&](const transport::TileRange& range) {
    for (int tile = range.begin; tile < range.end; ++tile) {
      if (!std::binary_search(owned_[node].begin(), owned_[node].end(), tile)) return false;
    }
    return true;
  });
}

size_t LivePlacement::holder_of(int tile) const {
  for (size_t owner = 0; owner < owned_.size(); ++owner) {
    if (std::binary_search(owned_[owner].begin(), owned_[owner].end(), tile)) return holder_[owner];
  }
  CHECK(false);
  return 0;
}

void LivePlacement::rebuild() {
  view_.tiles_of_node.assign(owned_.size(), {});
  size_t num_owned = 0, num_held = 0;
  for (size_t node = 0; node < owned_.size(); ++node) {
    std::vector<int> held;
    for (size_t owner = 0; owner < owned_.size(); ++owner) {
      if (holder_[owner] != node) continue;
      held.insert(held.end(), owned_[owner].begin(), owned_[owner].end());
    }
    std::sort(held.begin(), held.end());
    view_.tiles_of_node[node] = to_ranges(held);
    num_owned += owned_[node].size();
    num_held += held.size();
  }
  CHECK_EQ(num_held, num_owned);  // every tile is at one node
}

}  // namespace atl::coordinator
