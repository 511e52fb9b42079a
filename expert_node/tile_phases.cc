#include "expert_node/tile_phases.h"

#include <algorithm>

#include "base/check.h"
#include "base/units.h"
#include "kernels/linear.h"

namespace atl::expert_node {
namespace {

// Units per thread and phase: fewer leave threads idle at the end of a phase.
constexpr int64_t kUnitsPerThread = 4;
// Panels that the micro-kernel takes at once for one row; more of gate or up don't make it faster.
constexpr int64_t kGateUpPanelsMax = 8;
// A tile's share of a panel of down is only 128 k long, so that a call's fixed cost (rows made
// ready, sums cleared) counts if it is made for few panels. With many rows, kDownRows of them go
// through all tiles before the next ones do, so that their sums (8 bytes for each row and output:
// 256 KiB) stay in the second-level cache.
constexpr int64_t kDownPanelsMax = 64;
constexpr int64_t kDownManyPanelsMax = 32;
constexpr size_t kDownRows = 64;
// What a kernel makes ready at once for each thread: 64 rows, each block of 128 values apart from
// the next (kernels/cpu/panel_kernel-inl.h), with some bytes for each block.
constexpr uint64_t kScratchRowBytesPerBlock = 640;
constexpr uint64_t kScratchRows = 64;
constexpr int64_t kTileWidth = 128;
// From here on making rows ready costs enough to share it between tiles.
constexpr size_t kManyRows = 9;

// Whole blocks of kGateUpPanelsMax panels, or less than one: a part of a block at the end of each
// tile's share is slow and spoils the fetching of the next (Zen 4, 2 cores, FP8: 21 GB/s in units
// of 28 panels, 30 in units of 56).
int64_t panels_per_unit(int64_t panels, int num_threads, int64_t max) {
  const int64_t share = std::clamp<int64_t>(panels / (kUnitsPerThread * num_threads), 1, max);
  return share < kGateUpPanelsMax ? share : share / kGateUpPanelsMax * kGateUpPanelsMax;
}

// Floats of gate's values that are kept beside up's, which happens only while tiles are few.
uint64_t up_values_max(const StepLimits& limits, int num_threads) {
  const int64_t panels_per_tile = kTileWidth / kernels::kPanelWidth;
  const int64_t tiles = ceil_div(kUnitsPerThread * num_threads, panels_per_tile);
  const int64_t values = std::min(tiles * kTileWidth, limits.top_k * limits.moe_intermediate_size);
  return static_cast<uint64_t>(limits.num_rows * values);
}

uint64_t h_values_max(const StepLimits& limits) {
  return static_cast<uint64_t>(limits.num_rows * limits.top_k * limits.moe_intermediate_size);
}

}  // namespace

uint64_t TilePhases::buffer_bytes(const StepLimits& limits, int num_threads) {
  const auto pairs = static_cast<uint64_t>(limits.num_rows * limits.top_k);
  const auto threads = static_cast<uint64_t>(num_threads);
  const uint64_t rows = std::min(static_cast<uint64_t>(limits.num_rows), kScratchRows);
  const auto blocks = static_cast<uint64_t>(ceil_div(limits.hidden_size, kernels::kScaleBlock));
  const uint64_t scratch = rows * blocks * kScratchRowBytesPerBlock;
  return (h_values_max(limits) + up_values_max(limits, num_threads)) * sizeof(float) +
         threads * (pairs + scratch);
}

void TilePhases::reserve(const StepLimits& limits) {
  h_.reserve(h_values_max(limits));
  up_.reserve(up_values_max(limits, team_.num_threads()));
  for (std::vector<uint8_t>& bad : bad_) {
    bad.reserve(static_cast<size_t>(limits.num_rows * limits.top_k));
  }
}

void TilePhases::start(const Pairs& pairs) {
  CHECK_EQ(pairs.x.size(), pairs.weights.size());
  CHECK_EQ(pairs.x.size(), pairs.sums.size());
  pairs_ = pairs;
  for (std::vector<uint8_t>& bad : bad_) bad.assign(pairs.x.size(), 0);
}

void TilePhases::gate_up(std::span<const TileWork> works) {
  works_ = works;
  group_works();
  place_h();
  cut_gate_up();
  team_.parallel_for(static_cast<int64_t>(units_.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t u = begin; u < end; ++u) run_unit(units_[u]);
  });
}

void TilePhases::group_works() {
  groups_.clear();
  for (size_t w = 0; w < works_.size(); ++w) {
    const TileWork& work = works_[w];
    if (groups_.empty() || works_[groups_.back().begin].pair_begin != work.pair_begin) {
      groups_.push_back({w, w, work.pair_end - work.pair_begin});
    }
    groups_.back().end = w + 1;
  }
}

void TilePhases::place_h() {
  h_begin_.clear();
  size_t end = 0;
  for (const TileWork& work : works_) {
    h_begin_.push_back(end);
    end += (work.pair_end - work.pair_begin) * static_cast<size_t>(work.tile.layout->width);
  }
  h_.resize(end);
}

float* TilePhases::h_row(size_t work, size_t pair_index) {
  return &h_[h_begin_[work] + pair_index * static_cast<size_t>(works_[work].tile.layout->width)];
}

void TilePhases::cut_gate_up() {
  int64_t num_panels = 0;
  for (const TileWork& work : works_) num_panels += work.tile.layout->gate_up.num_panels();
  const int64_t units = kUnitsPerThread * team_.num_threads();
  const bool apart = num_panels < units;
  const int64_t panels = panels_per_unit(num_panels, team_.num_threads(), kGateUpPanelsMax);
  const size_t tiles = works_.size() / static_cast<size_t>(units);
  units_.clear();
  pairs_of_parts_ = 0;
  for (const Group& group : groups_) {
    if (group.num_pairs >= kManyRows && tiles > 1) {
      cut_tiles(group, tiles);
    } else {
      cut_panels(group, panels, apart);
    }
  }
  if (!apart) return;
  up_.resize(h_.size());
  if (done_.size() < pairs_of_parts_) done_ = std::vector<std::atomic<uint8_t>>(pairs_of_parts_);
  for (auto& done : done_) done.store(0, std::memory_order_relaxed);
}

// Units of several whole tiles.
void TilePhases::cut_tiles(const Group& group, size_t tiles) {
  for (size_t w = group.begin; w < group.end; w += tiles) {
    units_.push_back({w, std::min(w + tiles, group.end), Part::kBoth, 0,
                      works_[w].tile.layout->gate_up.num_panels(), 0});
  }
}

// Units of some panels of a tile, gate and up together or apart.
void TilePhases::cut_panels(const Group& group, int64_t panels, bool apart) {
  for (size_t w = group.begin; w < group.end; ++w) {
    const int64_t all = works_[w].tile.layout->gate_up.num_panels();
    for (int64_t panel = 0; panel < all; panel += panels, ++pairs_of_parts_) {
      const int64_t end = std::min(panel + panels, all);
      if (apart) {
        units_.push_back({w, w + 1, Part::kGate, panel, end, pairs_of_parts_});
        units_.push_back({w, w + 1, Part::kUp, panel, end, pairs_of_parts_});
      } else {
        units_.push_back({w, w + 1, Part::kBoth, panel, end, pairs_of_parts_});
      }
    }
  }
}

void TilePhases::run_unit(const Unit& unit) {
  thread_local std::vector<float*> out;
  thread_local std::vector<kernels::TileView> tiles;
  const TileWork& first = works_[unit.work_begin];
  const size_t n = first.pair_end - first.pair_begin;
  const auto x = pairs_.x.subspan(first.pair_begin, n);
  out.clear();
  tiles.clear();
  for (size_t w = unit.work_begin; w < unit.work_end; ++w) {
    tiles.push_back(works_[w].tile);
    for (size_t i = 0; i < n; ++i) out.push_back(h_row(w, i));
  }
  if (unit.part == Part::kBoth) {
    kernels::tile_gate_up(tiles, unit.panel_begin, unit.panel_end, x,
                          pairs_.weights.subspan(first.pair_begin, n), out);
    return;
  }
  if (unit.part == Part::kUp) {
    for (float*& row : out) row = &up_[static_cast<size_t>(row - h_.data())];
  }
  kernels::linear_panels(unit.part == Part::kUp ? first.tile.up() : first.tile.gate(),
                         unit.panel_begin, unit.panel_end, x, out);
  finish_part(unit);
}

// Whoever finishes the second of gate and up makes h of both, in the place of gate.
void TilePhases::finish_part(const Unit& unit) {
  if (done_[unit.pair_of_parts].fetch_add(1, std::memory_order_acq_rel) == 0) return;
  const TileWork& work = works_[unit.work_begin];
  const int64_t first = unit.panel_begin * kernels::kPanelWidth;
  const int64_t end = std::min(unit.panel_end * kernels::kPanelWidth, work.tile.layout->width);
  for (size_t pair = work.pair_begin; pair < work.pair_end; ++pair) {
    float* h = h_row(unit.work_begin, pair - work.pair_begin) + first;
    const float* up = &up_[static_cast<size_t>(h - h_.data())];
    kernels::tile_combine_gate_up(h, up, pairs_.weights[pair], end - first, h);
  }
}

void TilePhases::down(int64_t panel_begin, int64_t panel_end) {
  const bool many = std::any_of(groups_.begin(), groups_.end(),
                                [](const Group& group) { return group.num_pairs >= kManyRows; });
  const int64_t grain = panels_per_unit(panel_end - panel_begin, team_.num_threads(),
                                        many ? kDownManyPanelsMax : kDownPanelsMax);
  team_.parallel_for(panel_end - panel_begin, grain, [&](int64_t begin, int64_t end, int member) {
    for (const Group& group : groups_) {
      down_of_group(group, panel_begin + begin, panel_begin + end, member);
    }
  });
}

void TilePhases::down_of_group(const Group& group, int64_t panel_begin, int64_t panel_end,
                               int member) {
  thread_local std::vector<const float*> h;
  for (size_t row = 0; row < group.num_pairs; row += kDownRows) {
    const size_t n = std::min(kDownRows, group.num_pairs - row);
    const size_t pair = works_[group.begin].pair_begin + row;
    h.resize(n);
    for (size_t w = group.begin; w < group.end; ++w) {
      for (size_t i = 0; i < n; ++i) h[i] = h_row(w, row + i);
      const kernels::TileView* next = w + 1 < works_.size() ? &works_[w + 1].tile : nullptr;
      kernels::tile_down_accumulate(works_[w].tile, panel_begin, panel_end, h,
                                    pairs_.sums.subspan(pair, n),
                                    std::span(bad_[member]).subspan(pair, n), next);
    }
  }
}

bool TilePhases::is_bad(size_t pair) const {
  return std::any_of(bad_.begin(), bad_.end(),
                     [pair](const std::vector<uint8_t>& flags) { return flags[pair] != 0; });
}

}  // namespace atl::expert_node
