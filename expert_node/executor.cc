#include "expert_node/executor.h"

#include <algorithm>
#include <numeric>

#include "base/units.h"
#include "kernels/ops.h"

namespace atl::expert_node {
namespace {

using transport::NodeWork;

std::vector<int> wanted_tiles(const transport::Dispatch& dispatch) {
  std::vector<int> tiles;
  for (const transport::TileRange& range : dispatch.tiles) {
    for (int tile = range.begin; tile < range.end; ++tile) tiles.push_back(tile);
  }
  return tiles;
}

}  // namespace

uint64_t Executor::buffer_bytes(const StepLimits& limits, int num_threads) {
  const auto values = static_cast<uint64_t>(limits.num_rows * limits.hidden_size);
  const auto pairs = static_cast<uint64_t>(limits.num_rows * limits.top_k);
  return values * (sizeof(float) + sizeof(int64_t)) +
         pairs * (sizeof(int32_t) + sizeof(float) + sizeof(float*) + sizeof(int64_t*)) +
         TilePhases::buffer_bytes(limits, num_threads);
}

void Executor::reserve(const StepLimits& limits) {
  const auto values = static_cast<size_t>(limits.num_rows * limits.hidden_size);
  const auto pairs = static_cast<size_t>(limits.num_rows * limits.top_k);
  x_.reserve(values);
  sums_.reserve(values);
  pair_row_.reserve(pairs);
  pair_weight_.reserve(pairs);
  pair_x_.reserve(pairs);
  pair_sum_.reserve(pairs);
  phases_.reserve(limits);
}

Result<ExecutorCounts> Executor::run(const transport::Dispatch& dispatch,
                                     const std::function<void(const Piece&)>& sink) {
  const std::vector<int> wanted = wanted_tiles(dispatch);
  group_by_expert(dispatch);
  widen_rows(dispatch);

  order_reads();
  const auto batch = compute_all_but_last_down(dispatch, wanted);
  if (!batch) return batch.error();

  const int64_t hidden = dispatch.hidden_size;
  const int64_t num_panels = ceil_div(hidden, kernels::kPanelWidth);
  const int64_t row_panel_bytes = dispatch.num_rows * kernels::kPanelWidth * 6;
  const int64_t panels_per_piece =
      std::clamp<int64_t>(static_cast<int64_t>(piece_bytes_) / row_panel_bytes, 1, num_panels);
  for (int64_t panel = 0; panel < num_panels; panel += panels_per_piece) {
    const int64_t panel_end = std::min(panel + panels_per_piece, num_panels);
    {
      const TraceSpan span = this->span(NodeWork::kDown, dispatch);
      phases_.down(panel, panel_end);
    }
    Piece piece;
    piece.output_begin = static_cast<uint32_t>(panel * kernels::kPanelWidth);
    piece.num_outputs = static_cast<uint32_t>(std::min(panel_end * kernels::kPanelWidth, hidden)) -
                        piece.output_begin;
    piece.sums = sums_;
    piece.sums_stride = hidden;
    piece.failed_rows = take_failed_rows();
    sink(piece);
  }
  wave_.clear();
  return ExecutorCounts{pair_row_.size(), experts_.size() * wanted.size()};
}

// Both phases of all tiles but the second one of the last wave, whose tiles stay pinned as long as
// the batch that comes back lives.
Result<storage::TileBatch> Executor::compute_all_but_last_down(const transport::Dispatch& dispatch,
                                                               std::span<const int> wanted) {
  const auto layer = static_cast<int32_t>(dispatch.names.layer);
  const int64_t num_panels = ceil_div(int64_t{dispatch.hidden_size}, kernels::kPanelWidth);
  const auto at_once = static_cast<size_t>(tiles_.tiles_at_once());  // less than wanted: scarce RAM
  for (size_t first = 0;; first += at_once) {
    const auto tiles = wanted.subspan(first, std::min(at_once, wanted.size() - first));
    const bool last_tiles = first + tiles.size() == wanted.size();
    auto batch = tiles_.request(layer, read_ids_, tiles);
    if (!batch) return batch.error();
    bool more = true;
    while (more) {
      const auto ready = [&] {
        const TraceSpan span = this->span(NodeWork::kRead, dispatch);
        return batch->next();
      }();
      if (!ready) return ready.error();
      take_wave(*batch, *ready, tiles.size());
      {
        const TraceSpan span = this->span(NodeWork::kGateUp, dispatch);
        phases_.gate_up(wave_);
      }
      more = !batch->all_handed_out();
      if (!more && last_tiles) return batch;
      {
        const TraceSpan span = this->span(NodeWork::kDown, dispatch);
        phases_.down(0, num_panels);
      }
      batch->release();
    }
  }
}

// Reading takes as long for each expert, computing takes longer the more rows there are: those with
// the most rows are read first, so that little is left to compute when the last one has come.
void Executor::order_reads() {
  read_order_.resize(experts_.size());
  std::iota(read_order_.begin(), read_order_.end(), size_t{0});
  std::stable_sort(read_order_.begin(), read_order_.end(), [this](size_t a, size_t b) {
    return experts_[a].pair_end - experts_[a].pair_begin >
           experts_[b].pair_end - experts_[b].pair_begin;
  });
  read_ids_.clear();
  for (const size_t place : read_order_) read_ids_.push_back(experts_[place].expert);
}

void Executor::take_wave(const storage::TileBatch& batch, std::span<const size_t> ready,
                         size_t num_tiles) {
  wave_.clear();
  for (const size_t place : ready) {
    const ExpertRows& rows = experts_[read_order_[place]];
    for (size_t tile = 0; tile < num_tiles; ++tile) {
      wave_.push_back({batch.tile(place, tile), rows.pair_begin, rows.pair_end});
    }
  }
}

// Lists the rows of each chosen expert, experts ascending, rows ascending (a counting sort).
void Executor::group_by_expert(const transport::Dispatch& dispatch) {
  std::vector<std::pair<int32_t, uint32_t>> choices;  // (expert, place in topk_ids)
  choices.reserve(dispatch.topk_ids.size());
  for (size_t place = 0; place < dispatch.topk_ids.size(); ++place) {
    const int32_t expert = dispatch.topk_ids[place];
    if (expert >= 0) choices.emplace_back(expert, static_cast<uint32_t>(place));
  }
  std::sort(choices.begin(), choices.end());

  experts_.clear();
  pair_row_.clear();
  pair_weight_.clear();
  for (const auto& [expert, place] : choices) {
    if (experts_.empty() || experts_.back().expert != expert) {
      experts_.push_back({expert, pair_row_.size(), pair_row_.size()});
    }
    pair_row_.push_back(static_cast<int32_t>(place / dispatch.top_k));
    pair_weight_.push_back(dispatch.topk_weights[place]);
    experts_.back().pair_end = pair_row_.size();
  }
}

// Rows from the wire type to FP32, sums to zero, and where each pair reads and adds.
void Executor::widen_rows(const transport::Dispatch& dispatch) {
  const size_t hidden = dispatch.hidden_size;
  const size_t row_bytes = hidden * transport::row_element_bytes(dispatch.row_type);
  const kernels::RowType type = dispatch.row_type == transport::WireRowType::kBf16
                                    ? kernels::RowType::kBf16
                                    : kernels::RowType::kF32;
  x_.resize(dispatch.num_rows * hidden);
  sums_.resize(dispatch.num_rows * hidden);
  team_.parallel_for(dispatch.num_rows, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      kernels::load_row(dispatch.rows.data() + row * row_bytes, hidden, type, &x_[row * hidden]);
      std::fill_n(&sums_[row * hidden], hidden, int64_t{0});
    }
  });
  pair_x_.resize(pair_row_.size());
  pair_sum_.resize(pair_row_.size());
  for (size_t pair = 0; pair < pair_row_.size(); ++pair) {
    pair_x_[pair] = &x_[pair_row_[pair] * hidden];
    pair_sum_[pair] = &sums_[pair_row_[pair] * hidden];
  }
  phases_.start({pair_x_, pair_weight_, pair_sum_});
}

// Rows with a bad contribution so far, each with its lowest expert (pairs ascend by expert).
std::vector<transport::FailedRow> Executor::take_failed_rows() {
  std::vector<transport::FailedRow> failed;
  for (const ExpertRows& rows : experts_) {
    for (size_t pair = rows.pair_begin; pair < rows.pair_end; ++pair) {
      if (phases_.is_bad(pair))
        failed.push_back({static_cast<uint32_t>(pair_row_[pair]), rows.expert});
    }
  }
  std::stable_sort(failed.begin(), failed.end(),
                   [](const auto& a, const auto& b) { return a.row < b.row; });
  failed.erase(std::unique(failed.begin(), failed.end(),
                           [](const auto& a, const auto& b) { return a.row == b.row; }),
               failed.end());
  return failed;
}

}  // namespace atl::expert_node
