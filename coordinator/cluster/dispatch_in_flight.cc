#include "coordinator/cluster/dispatch_in_flight.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/units.h"
#include "kernels/ops.h"
#include "kernels/tile.h"

namespace atl::coordinator {
namespace {

constexpr int32_t kNoFailure = std::numeric_limits<int32_t>::max();
// A node works in panels of this many outputs, so pieces begin and end on them.
constexpr int64_t kCell = kernels::kPanelWidth;
// Rows of sums that a member of the team takes at a time: 448 KiB of V3's.
constexpr int64_t kRowsAtOnce = 8;

}  // namespace

void DispatchInFlight::begin(int32_t layer, int64_t num_rows, transport::SharedBuffer payload,
                             size_t payload_bytes, const PlacementView& placement) {
  CHECK(payload != nullptr && payload->size() >= payload_bytes);
  CHECK(num_rows >= 1 && num_rows <= limits_.rows_max);
  layer_ = layer;
  num_rows_ = num_rows;
  payload_ = std::move(payload);
  payload_bytes_ = payload_bytes;
  failure_.reset();
  sums_.assign(num_rows * limits_.hidden_size, 0);
  lowest_failed_.assign(num_rows, kNoFailure);
  shares_.clear();
  const int64_t cells = num_rows * ceil_div(limits_.hidden_size, kCell);
  for (size_t node = 0; node < placement.tiles_of_node.size(); ++node) {
    const auto tiles = placement.tiles(layer, node);
    if (tiles.empty()) continue;
    Share& share = shares_.emplace_back();
    share.node = node;
    share.epoch = placement.epoch;
    share.tiles.assign(tiles.begin(), tiles.end());
    share.missing = cells;
    share.arrived.assign(cells, 0);
  }
  CHECK(!shares_.empty());
}

bool DispatchInFlight::done() const {
  return std::all_of(shares_.begin(), shares_.end(), [](const Share& s) { return s.missing == 0; });
}

void DispatchInFlight::split(size_t share,
                             const std::vector<std::vector<transport::TileRange>>& parts) {
  CHECK(!parts.empty() && !shares_[share].asked && shares_[share].second.empty());
  shares_[share].tiles = parts.front();
  for (size_t part = 1; part < parts.size(); ++part) {
    Share copy = shares_[share];
    copy.tiles = parts[part];
    shares_.push_back(std::move(copy));
  }
}

void DispatchInFlight::begin_second(Share& share, std::vector<Leg> legs) {
  CHECK(share.second.empty() && !legs.empty() && legs.size() < 256);
  const int64_t cells = num_rows_ * ceil_div(limits_.hidden_size, kCell);
  for (Leg& leg : legs) {
    leg.arrived.assign(cells, 0);
    leg.missing = cells;
  }
  share.second = std::move(legs);
  share.was_doubled = true;
  share.second_sums.assign(num_rows_ * limits_.hidden_size, 0);
  share.second_count.assign(cells, 0);
}

void DispatchInFlight::end_second(Share& share) {
  share.second.clear();
  share.second_sums = {};
  share.second_count = {};
}

Status DispatchInFlight::check_rectangle(const transport::Partial& partial) const {
  const int64_t hidden = limits_.hidden_size;
  const int64_t output_end = int64_t{partial.output_begin} + partial.num_outputs;
  if (int64_t{partial.row_begin} + partial.num_rows > num_rows_ ||
      partial.output_begin % kCell != 0 || (output_end % kCell != 0 && output_end != hidden)) {
    return Error{ErrorCode::kInvalid,
                 fmt::format("sent rows {}+{}, outputs {}+{}; expected panels of {} outputs within "
                             "{} rows x {} outputs",
                             partial.row_begin, partial.num_rows, partial.output_begin,
                             partial.num_outputs, kCell, num_rows_, hidden)};
  }
  CHECK_EQ(partial.elements.size(),
           transport::partial_elements_bytes(partial.num_rows, partial.num_outputs,
                                             partial.element_bits));
  return {};
}

// The same contributions fail wherever a tile is computed, so that it does not matter who says it.
void DispatchInFlight::note_failures(const transport::Partial& partial) {
  for (const transport::FailedRow& failed : partial.failed_rows) {
    if (failed.row < num_rows_) {
      lowest_failed_[failed.row] = std::min(lowest_failed_[failed.row], failed.expert);
    }
  }
}

Status DispatchInFlight::add(Share& share, const transport::Partial& partial, ThreadTeam& team) {
  if (Status status = check_rectangle(partial); !status) return status;
  const int64_t hidden = limits_.hidden_size;
  const int64_t num_panels = ceil_div(hidden, kCell);
  const int64_t output_end = int64_t{partial.output_begin} + partial.num_outputs;
  const size_t element_bytes = partial.element_bits / 8;
  const int64_t panel_begin = partial.output_begin / kCell;
  const int64_t panel_end = ceil_div(output_end, kCell);
  std::atomic<int64_t> new_cells{0};
  const auto add_row = [&](int64_t r) {
    const int64_t row = partial.row_begin + r;
    uint8_t* const arrived = &share.arrived[row * num_panels];
    int64_t cells = 0;
    for (int64_t panel = panel_begin; panel < panel_end;) {
      if (arrived[panel]) {
        ++panel;
        continue;
      }
      const int64_t output = panel * kCell;  // the stretch of outputs that are new
      for (; panel < panel_end && !arrived[panel]; ++panel) {
        arrived[panel] = 1;
        ++cells;
      }
      const int64_t n = std::min(panel * kCell, output_end) - output;
      const size_t at = (r * partial.num_outputs + output - partial.output_begin) * element_bytes;
      transport::add_elements(partial.elements.subspan(at, n * element_bytes), partial.element_bits,
                              std::span(sums_).subspan(row * hidden + output, n));
    }
    new_cells.fetch_add(cells, std::memory_order_relaxed);
  };
  team.parallel_for(partial.num_rows, kRowsAtOnce, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) add_row(r);
  });
  share.missing -= new_cells.load(std::memory_order_relaxed);
  CHECK_GE(share.missing, 0);
  note_failures(partial);
  return {};
}

Status DispatchInFlight::add_second(Share& share, Leg& leg, const transport::Partial& partial,
                                    ThreadTeam& team) {
  if (Status status = check_rectangle(partial); !status) return status;
  const int64_t hidden = limits_.hidden_size;
  const int64_t num_panels = ceil_div(hidden, kCell);
  const int64_t output_end = int64_t{partial.output_begin} + partial.num_outputs;
  const size_t element_bytes = partial.element_bits / 8;
  const size_t num_legs = share.second.size();
  std::atomic<int64_t> new_cells{0}, whole_cells{0};
  const auto add_cell = [&](int64_t r, int64_t panel) {
    const int64_t row = partial.row_begin + r, cell = row * num_panels + panel;
    if (leg.arrived[cell]) return;
    leg.arrived[cell] = 1;
    new_cells.fetch_add(1, std::memory_order_relaxed);
    if (share.arrived[cell]) return;  // the first node was faster
    const int64_t output = panel * kCell;
    const int64_t n = std::min(output + kCell, output_end) - output;
    const size_t at = (r * partial.num_outputs + output - partial.output_begin) * element_bytes;
    const auto gathered = std::span(share.second_sums).subspan(row * hidden + output, n);
    transport::add_elements(partial.elements.subspan(at, n * element_bytes), partial.element_bits,
                            gathered);
    if (++share.second_count[cell] < num_legs) return;
    for (int64_t i = 0; i < n; ++i) {  // unsigned: a sum that leaves 64 bits wraps
      int64_t& sum = sums_[row * hidden + output + i];
      sum = static_cast<int64_t>(static_cast<uint64_t>(sum) + static_cast<uint64_t>(gathered[i]));
    }
    share.arrived[cell] = 1;
    whole_cells.fetch_add(1, std::memory_order_relaxed);
  };
  team.parallel_for(partial.num_rows, kRowsAtOnce, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t panel = partial.output_begin / kCell; panel < ceil_div(output_end, kCell);
           ++panel) {
        add_cell(r, panel);
      }
    }
  });
  leg.missing -= new_cells.load(std::memory_order_relaxed);
  share.missing -= whole_cells.load(std::memory_order_relaxed);
  CHECK(leg.missing >= 0 && share.missing >= 0);
  note_failures(partial);
  return {};
}

std::vector<RowFailure> DispatchInFlight::finish(float* out, ThreadTeam& team) {
  CHECK(done());
  const int64_t hidden = limits_.hidden_size;
  std::vector<uint8_t> in_range(num_rows_);
  team.parallel_for(num_rows_, kRowsAtOnce, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      in_range[row] =
          kernels::add_fixed_point_row(&sums_[row * hidden], hidden, out + row * hidden);
    }
  });
  std::vector<RowFailure> failures;
  for (int64_t row = 0; row < num_rows_; ++row) {
    if (lowest_failed_[row] != kNoFailure) {
      failures.push_back({static_cast<uint32_t>(row), lowest_failed_[row]});
    } else if (!in_range[row]) {
      failures.push_back({static_cast<uint32_t>(row), -1});
    }
  }
  return failures;
}

void DispatchInFlight::fail(Error why) {
  if (!failure_) failure_ = std::move(why);
}

}  // namespace atl::coordinator
