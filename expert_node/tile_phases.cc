#include "expert_node/tile_phases.h"

#include <algorithm>

#include "base/check.h"
#include "base/units.h"
#include "kernels/linear.h"

namespace atl::expert_node {
namespace {

// Units per thread and phase: fewer leave threads idle at the end of a phase.
constexpr int64_t kUnitsPerThread = 4;
// More adjacent panels of gate or up than this don't make the micro-kernel faster.
constexpr int64_t kGateUpPanelsMax = 8;
// A tile's share of a panel of down is only 128 k long, so that a call's fixed cost (rows made
// ready, sums cleared) counts: for a row it goes from 15 % to 2 % of the time with 64 panels. With
// many rows their sums (8 bytes for each row and output) would leave the second-level cache.
constexpr int64_t kDownPanelsMax = 64;
constexpr int64_t kDownManyPanelsMax = 8;
constexpr int64_t kFewRows = 8;

int64_t panels_per_unit(int64_t panels, int num_threads, int64_t max) {
  return std::clamp<int64_t>(panels / (kUnitsPerThread * num_threads), 1, max);
}

}  // namespace

void TilePhases::start(const Pairs& pairs) {
  CHECK_EQ(pairs.x.size(), pairs.weights.size());
  CHECK_EQ(pairs.x.size(), pairs.sums.size());
  pairs_ = pairs;
  for (std::vector<uint8_t>& bad : bad_) bad.assign(pairs.x.size(), 0);
}

void TilePhases::gate_up(std::span<const TileWork> works) {
  works_ = works;
  place_h();
  cut_gate_up();
  team_.parallel_for(static_cast<int64_t>(units_.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t u = begin; u < end; ++u) run_unit(units_[u]);
  });
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

void TilePhases::cut_gate_up() {
  int64_t num_panels = 0;
  for (const TileWork& work : works_) num_panels += work.tile.layout->gate_up.num_panels();
  const bool apart = num_panels < kUnitsPerThread * team_.num_threads();
  const int64_t step = panels_per_unit(num_panels, team_.num_threads(), kGateUpPanelsMax);
  units_.clear();
  size_t pair_of_parts = 0;
  for (uint32_t w = 0; w < works_.size(); ++w) {
    const int64_t panels = works_[w].tile.layout->gate_up.num_panels();
    for (int64_t panel = 0; panel < panels; panel += step, ++pair_of_parts) {
      const int64_t end = std::min(panel + step, panels);
      if (apart) {
        units_.push_back({w, Part::kGate, panel, end, pair_of_parts});
        units_.push_back({w, Part::kUp, panel, end, pair_of_parts});
      } else {
        units_.push_back({w, Part::kBoth, panel, end, pair_of_parts});
      }
    }
  }
  if (!apart) return;
  up_.resize(h_.size());
  if (done_.size() < pair_of_parts) done_ = std::vector<std::atomic<uint8_t>>(pair_of_parts);
  for (auto& done : done_) done.store(0, std::memory_order_relaxed);
}

void TilePhases::run_unit(const Unit& unit) {
  thread_local std::vector<float*> out;
  const TileWork& work = works_[unit.work];
  const size_t n = work.pair_end - work.pair_begin;
  const auto x = pairs_.x.subspan(work.pair_begin, n);
  std::vector<float>& values = unit.part == Part::kUp ? up_ : h_;
  out.resize(n);
  for (size_t i = 0; i < n; ++i) {
    out[i] = &values[h_begin_[unit.work] + i * static_cast<size_t>(work.tile.layout->width)];
  }
  if (unit.part == Part::kBoth) {
    kernels::tile_gate_up(work.tile, unit.panel_begin, unit.panel_end, x,
                          pairs_.weights.subspan(work.pair_begin, n), out);
    return;
  }
  kernels::linear_panels(unit.part == Part::kUp ? work.tile.up() : work.tile.gate(),
                         unit.panel_begin, unit.panel_end, x, out);
  finish_part(unit, n);
}

// Whoever finishes the second of gate and up makes h of both, in the place of gate.
void TilePhases::finish_part(const Unit& unit, size_t num_pairs) {
  if (done_[unit.pair_of_parts].fetch_add(1, std::memory_order_acq_rel) == 0) return;
  const TileWork& work = works_[unit.work];
  const int64_t width = work.tile.layout->width;
  const int64_t first = unit.panel_begin * kernels::kPanelWidth;
  const int64_t count = std::min(unit.panel_end * kernels::kPanelWidth, width) - first;
  for (size_t i = 0; i < num_pairs; ++i) {
    const size_t at =
        h_begin_[unit.work] + i * static_cast<size_t>(width) + static_cast<size_t>(first);
    kernels::tile_combine_gate_up(&h_[at], &up_[at], pairs_.weights[work.pair_begin + i], count,
                                  &h_[at]);
  }
}

void TilePhases::down(int64_t panel_begin, int64_t panel_end) {
  int64_t rows = 0;
  for (const TileWork& work : works_) {
    rows = std::max(rows, static_cast<int64_t>(work.pair_end - work.pair_begin));
  }
  const int64_t max = rows <= kFewRows ? kDownPanelsMax : kDownManyPanelsMax;
  const int64_t grain = panels_per_unit(panel_end - panel_begin, team_.num_threads(), max);
  team_.parallel_for(panel_end - panel_begin, grain, [&](int64_t begin, int64_t end, int member) {
    thread_local std::vector<const float*> h;
    for (size_t w = 0; w < works_.size(); ++w) {
      const TileWork& work = works_[w];
      const size_t n = work.pair_end - work.pair_begin;
      h.resize(n);
      for (size_t i = 0; i < n; ++i) {
        h[i] = &h_[h_begin_[w] + i * static_cast<size_t>(work.tile.layout->width)];
      }
      const kernels::TileView* next = w + 1 < works_.size() ? &works_[w + 1].tile : nullptr;
      kernels::tile_down_accumulate(work.tile, panel_begin + begin, panel_begin + end, h,
                                    pairs_.sums.subspan(work.pair_begin, n),
                                    std::span(bad_[member]).subspan(work.pair_begin, n), next);
    }
  });
}

bool TilePhases::is_bad(size_t pair) const {
  return std::any_of(bad_.begin(), bad_.end(),
                     [pair](const std::vector<uint8_t>& flags) { return flags[pair] != 0; });
}

}  // namespace atl::expert_node
