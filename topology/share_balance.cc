#include "topology/share_balance.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <utility>

#include "base/check.h"

namespace atl::topology {
namespace {

constexpr double kUnknown = -1;

double longest(const std::vector<std::vector<int>>& tiles, const std::vector<double>& seconds) {
  double longest = 0;
  for (size_t node = 0; node < tiles.size(); ++node) {
    if (tiles[node].empty()) continue;
    longest = std::max(longest, seconds[node] * static_cast<double>(tiles[node].size()));
  }
  return longest;
}

bool has(const std::vector<int>& tiles, int tile) {
  return std::binary_search(tiles.begin(), tiles.end(), tile);
}

}  // namespace

void ShareBalancer::set_plan(std::vector<std::vector<int>> tiles,
                             std::vector<std::vector<int>> kept, std::vector<int> room) {
  CHECK(kept.size() == tiles.size() && room.size() == tiles.size());
  plan_ = tiles_ = std::move(tiles);
  kept_ = std::move(kept);
  room_ = std::move(room);
  worth_in_a_row_ = as_good_in_a_row_ = 0;
}

bool ShareBalancer::may_take(size_t node, int tile,
                             const std::vector<std::vector<int>>& tiles) const {
  if (has(kept_[node], tile)) return true;
  const auto beside = std::count_if(tiles[node].begin(), tiles[node].end(),
                                    [&](int other) { return !has(kept_[node], other); });
  return static_cast<int64_t>(kept_[node].size()) + beside + 1 <= room_[node];
}

// One tile after the other goes from a node to one that then takes less time than the first one
// did, the slowest nodes first; back to its owner by the plan rather than to others.
std::vector<std::vector<int>> ShareBalancer::best(const std::vector<double>& seconds) const {
  std::vector<std::vector<int>> tiles = tiles_;
  const auto time = [&](size_t node, size_t more) {
    return seconds[node] * static_cast<double>(tiles[node].size() + more);
  };
  const auto move_one = [&] {
    std::vector<size_t> order(tiles.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return time(a, 0) > time(b, 0); });
    for (const size_t from : order) {
      std::pair<double, bool> best_cost{time(from, 0), false};
      std::optional<std::pair<int, size_t>> best;  // tile, to whom
      for (const int tile : tiles[from]) {
        for (size_t to = 0; to < tiles.size(); ++to) {
          if (to == from || seconds[to] < 0 || !may_take(to, tile, tiles)) continue;
          const std::pair cost{time(to, 1), !has(plan_[to], tile)};
          if (cost.first < time(from, 0) && cost < best_cost) {
            best_cost = cost;
            best = {tile, to};
          }
        }
      }
      if (!best) continue;
      std::erase(tiles[from], best->first);
      std::vector<int>& to = tiles[best->second];
      to.insert(std::lower_bound(to.begin(), to.end(), best->first), best->first);
      return true;
    }
    return false;
  };
  // Each move makes the sorted times smaller, so that it ends; noise in sums can't make it run on.
  for (int moves = 0; moves < 1000 && move_one(); ++moves) continue;
  return tiles;
}

bool ShareBalancer::look(const std::vector<MeasuredNode>& nodes) {
  CHECK_EQ(nodes.size(), plan_.size());
  std::vector<double> seconds(nodes.size(), kUnknown), planned(nodes.size(), kUnknown);
  bool is_known = true;
  for (size_t n = 0; n < nodes.size(); ++n) {
    const MeasuredNode& node = nodes[n];
    const size_t own = plan_[n].size();
    if (own > 0 && node.planned_seconds > 0) {
      planned[n] = node.planned_seconds / static_cast<double>(own);
    }
    if (tiles_[n].empty()) {
      seconds[n] = planned[n];
    } else if (!node.is_there || node.answers < options_.answers_min) {
      is_known = false;
    } else {
      seconds[n] = node.seconds_per_tile;
      if (planned[n] < 0) planned[n] = seconds[n];
    }
    if (!node.is_there) seconds[n] = planned[n] = kUnknown;
  }
  if (!is_known) {
    worth_in_a_row_ = as_good_in_a_row_ = 0;
    return false;
  }
  const double now = longest(tiles_, seconds);
  bool is_plan_known = true;
  for (size_t n = 0; n < nodes.size(); ++n) {
    is_plan_known = is_plan_known && (plan_[n].empty() || planned[n] >= 0);
  }
  const bool as_good =
      !is_as_planned() && is_plan_known && longest(plan_, planned) <= options_.as_good * now;
  as_good_in_a_row_ = as_good ? as_good_in_a_row_ + 1 : 0;
  if (as_good_in_a_row_ >= options_.looks_back) {
    tiles_ = plan_;
    worth_in_a_row_ = as_good_in_a_row_ = 0;
    return true;
  }
  if (as_good) {
    worth_in_a_row_ = 0;
    return false;
  }
  std::vector<std::vector<int>> better = best(seconds);
  const double then = longest(better, seconds);
  const bool worth = then <= options_.worth * now && now - then >= options_.gain_seconds_min;
  worth_in_a_row_ = worth ? worth_in_a_row_ + 1 : 0;
  if (worth_in_a_row_ < options_.looks) return false;
  tiles_ = std::move(better);
  worth_in_a_row_ = as_good_in_a_row_ = 0;
  return true;
}

}  // namespace atl::topology
