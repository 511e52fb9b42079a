// The two phases in which a team computes some tiles: gate/up of every tile, then down by output
// panels, so that each sum has one writer. Between the two is one barrier, the end of a
// parallel loop.
//
// The unit of work is some panels of outputs, as splitting outputs never changes a sum. In the
// first phase, with many threads and few tiles, gate and up are units of their own and whoever
// finishes the second one makes h of both: 8 nodes of 64 cores at one row have 8 experts x 2 tiles
// x 8 panels x 2 = 256 units, 4 per thread, and 448 in the second phase, 7 per thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_team.h"
#include "kernels/tile.h"

namespace atl::expert_node {

// The (row, expert) pairs of a step, ordered by expert.
struct Pairs {
  std::span<const float* const> x;  // [pairs] rows [hidden] FP32, rounded to the wire type
  std::span<const float> weights;   // [pairs] router weights
  std::span<int64_t* const> sums;   // [pairs] rows [hidden], added to in units of 2^-24
};

// The largest step.
struct StepLimits {
  int64_t num_rows = 0, hidden_size = 0, top_k = 0, moe_intermediate_size = 0;
};

// A tile and the pairs [pair_begin, pair_end) that go through it.
struct TileWork {
  kernels::TileView tile;
  size_t pair_begin, pair_end;
};

// Owned by one thread, which is the team's caller. Its buffers grow to the largest step and stay.
class TilePhases {
 public:
  // The team is borrowed and must outlive this.
  explicit TilePhases(ThreadTeam& team) : team_(team), bad_(team.num_threads()) {}

  // RAM that steps of up to num_rows rows take here and in the kernels, and taking it at once.
  static uint64_t buffer_bytes(const StepLimits& limits, int num_threads);
  void reserve(const StepLimits& limits);

  // Starts a step: no pair is bad. Borrowed until the last down().
  void start(const Pairs& pairs);
  // First phase of these tiles. `works` and the tiles' memory are borrowed until the next call.
  void gate_up(std::span<const TileWork> works);
  // Second phase: adds those tiles to the outputs of panels [panel_begin, panel_end) of all their
  // pairs. Once for each panel.
  void down(int64_t panel_begin, int64_t panel_end);
  // Whether a contribution to this pair was not finite or out of bounds so far.
  bool is_bad(size_t pair) const;

 private:
  enum class Part : uint8_t { kBoth, kGate, kUp };
  // Panels [panel_begin, panel_end) of each of works [work_begin, work_end), of one expert.
  struct Unit {
    size_t work_begin, work_end;
    Part part;
    int64_t panel_begin, panel_end;
    size_t pair_of_parts;  // counter that gate and up of the same panels share
  };
  // Tiles of one expert: works [begin, end), all with the same pairs.
  struct Group {
    size_t begin, end;
    size_t num_pairs;
  };

  void group_works();
  void place_h();
  void cut_gate_up();
  void cut_tiles(const Group& group, size_t tiles);
  void cut_panels(const Group& group, int64_t panels, bool apart);
  void run_unit(const Unit& unit);
  void finish_part(const Unit& unit);
  void down_of_group(const Group& group, int64_t panel_begin, int64_t panel_end, int member);
  float* h_row(size_t work, size_t pair_index);

  ThreadTeam& team_;
  Pairs pairs_;
  std::span<const TileWork> works_;
  std::vector<Group> groups_;
  std::vector<Unit> units_;
  size_t pairs_of_parts_ = 0;
  std::vector<size_t> h_begin_;             // [works] first value in h_ and up_
  std::vector<float> h_;                    // [works][pairs, width]
  std::vector<float> up_;                   // the same, where gate and up are apart
  std::vector<std::atomic<uint8_t>> done_;  // [pair_of_parts] parts that are finished
  std::vector<std::vector<uint8_t>> bad_;   // [thread][pairs]
};

}  // namespace atl::expert_node
