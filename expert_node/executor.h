// Computes the tiles that a Dispatch names: one expert FFN slice per (expert, tile), integer sums.
//
// Expert-major: the two phases (expert_node/tile_phases.h) go over a wave of pinned tiles, each
// tile with all the rows that chose its expert, so that it is read once per Dispatch whatever the
// number of rows. The first wave has the experts that are in RAM; each further one those that have
// come from disk meanwhile.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/memory.h"
#include "base/result.h"
#include "base/thread_team.h"
#include "base/trace_ring.h"
#include "expert_node/tile_phases.h"
#include "storage/tiles/tile_store.h"
#include "transport/control/control.h"
#include "transport/data/wire.h"

namespace atl::expert_node {

// A finished rectangle of the result. Borrowed until the sink returns.
struct Piece {
  uint32_t output_begin = 0;
  uint32_t num_outputs = 0;
  std::span<const int64_t> sums;  // [num_rows, sums_stride], column 0 is output 0 of the model
  int64_t sums_stride = 0;
  std::vector<transport::FailedRow> failed_rows;
};

struct ExecutorCounts {
  uint64_t expert_rows = 0;  // (row, expert) pairs
  uint64_t tiles = 0;        // (expert, tile) computed
};

// Owned by the thread that serves the data plane. Its buffers grow to the largest Dispatch the
// limits allow and stay.
class Executor {
 public:
  // A piece of about this many bytes leaves for the coordinator while the next one is computed:
  // large enough for the link's full rate, small enough that a reply overlaps most of the work.
  static constexpr size_t kPieceBytes = size_t{1} << 20;

  // Both are borrowed and must outlive the executor.
  Executor(ThreadTeam& team, storage::TileStore& tiles, size_t piece_bytes = kPieceBytes)
      : team_(team), tiles_(tiles), piece_bytes_(piece_bytes), phases_(team) {}

  // RAM that Dispatches of up to these limits take beside the tiles, and taking it at once; without
  // that, buffers grow as needed.
  static uint64_t buffer_bytes(const StepLimits& limits, int num_threads);
  void reserve(const StepLimits& limits);

  // Records from now on how long what takes; borrowed.
  void set_trace(TraceRing* ring, const Clock* clock) {
    trace_ = ring;
    trace_clock_ = clock;
  }

  // Computes the dispatch and hands its pieces to `sink` in ascending output order; together they
  // cover every output once. On an error (a tile that can't be had) nothing has been handed out.
  Result<ExecutorCounts> run(const transport::Dispatch& dispatch,
                             const std::function<void(const Piece&)>& sink);

 private:
  // One expert of the dispatch and the rows that chose it: pairs [pair_begin, pair_end).
  struct ExpertRows {
    int32_t expert;
    size_t pair_begin, pair_end;
  };
  void group_by_expert(const transport::Dispatch& dispatch);
  void widen_rows(const transport::Dispatch& dispatch);
  void order_reads();
  Result<storage::TileBatch> compute_all_but_last_down(const transport::Dispatch& dispatch,
                                                       std::span<const int> wanted);
  void take_wave(const storage::TileBatch& batch, std::span<const size_t> ready, size_t num_tiles);
  std::vector<transport::FailedRow> take_failed_rows();

  TraceSpan span(transport::NodeWork work, const transport::Dispatch& dispatch) const {
    return {trace_,
            *trace_clock_,
            static_cast<uint8_t>(work),
            dispatch.names.dispatch.value,
            static_cast<int32_t>(dispatch.names.layer),
            dispatch.num_rows};
  }

  ThreadTeam& team_;
  storage::TileStore& tiles_;
  const size_t piece_bytes_;
  const SteadyClock steady_clock_;
  TraceRing* trace_ = nullptr;
  const Clock* trace_clock_ = &steady_clock_;
  TilePhases phases_;

  std::vector<ExpertRows> experts_;
  std::vector<int32_t> pair_row_;     // [pairs] row of the dispatch
  std::vector<float> pair_weight_;    // [pairs]
  std::vector<const float*> pair_x_;  // [pairs]
  std::vector<int64_t*> pair_sum_;    // [pairs]
  std::vector<float> x_;              // [rows, hidden] FP32
  std::vector<int64_t> sums_;         // [rows, hidden]
  std::vector<size_t> read_order_;    // places in experts_
  std::vector<int32_t> read_ids_;     // their ids
  std::vector<TileWork> wave_;
};

}  // namespace atl::expert_node
