// One layer's dispatch under way: who was asked for which tiles, and what has come of them.
//
// A row's result is the sum of all its tiles over all nodes, as integers, so that any order of
// arrival gives the same bits. Every share counts its cells (row x panel of 16 outputs): a piece
// that comes twice, or again from a stand-in, is added once.
//
// A share that is late may be asked a second time while the first node still computes, perhaps of
// several nodes in legs, each for some of its tiles. What the legs answer is gathered apart; a cell
// is taken from there when all legs have it, unless the first node was faster: of each cell one of
// the two ways is added, whole, and the other one dropped.
//
// What is here knows nothing of nodes' lives, connections and clocks; the Dispatcher owns it, asks,
// and gives up. One thread, the one that uses the Dispatcher; adding is spread over its team.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/thread_team.h"
#include "coordinator/cluster/placement_view.h"
#include "transport/data/transport.h"
#include "transport/data/wire.h"

namespace atl::coordinator {

// A row that can't be answered: contributions of `expert` (or, at -1, the sum over all) were not
// finite or out of range.
struct RowFailure {
  uint32_t row = 0;
  int32_t expert = -1;
};

class DispatchInFlight {
 public:
  // One node's part of the second way to a share's sums.
  struct Leg {
    DispatchId id;
    size_t node = 0;
    std::vector<transport::TileRange> tiles;
    std::vector<uint8_t> arrived = {};  // [num_rows, num_panels]
    int64_t missing = 0;                // cells
    Clock::TimePoint sent = {};
  };
  // What one node was asked for, and which cells of it are missing. Asked again elsewhere under a
  // new dispatch id if that node fails.
  struct Share {
    DispatchId id;
    Epoch epoch;
    size_t node;         // asked, or asked last
    bool asked = false;  // false: somebody is to be found
    std::vector<transport::TileRange> tiles;
    std::vector<uint8_t> arrived;  // [num_rows, num_panels]
    int64_t missing = 0;           // cells
    Clock::TimePoint sent;
    std::chrono::nanoseconds took{};  // until nothing was missing
    std::vector<size_t> refused_by;   // nodes that can't have one of its tiles
    std::string refusal;              // the last one's words

    std::vector<Leg> second;            // together for all its tiles; empty: there is no second way
    bool was_doubled = false;           // there is or was one
    std::vector<int64_t> second_sums;   // [num_rows, hidden] of the legs
    std::vector<uint8_t> second_count;  // [num_rows, num_panels] legs that have the cell
  };

  explicit DispatchInFlight(const transport::WireLimits& limits) : limits_(limits) {}

  // Another dispatch starts in this object, whose buffers are used again: nobody is asked yet.
  //   payload    what every node is sent: ids, weights, rows
  //   placement  one share for each node that has tiles of the layer
  void begin(int32_t layer, int64_t num_rows, transport::SharedBuffer payload, size_t payload_bytes,
             const PlacementView& placement);

  int32_t layer() const { return layer_; }
  int64_t num_rows() const { return num_rows_; }
  const transport::SharedBuffer& payload() const { return payload_; }
  size_t payload_bytes() const { return payload_bytes_; }
  std::vector<Share>& shares() { return shares_; }
  // Nothing is missing.
  bool done() const;
  // Makes a share of each of these sets of tiles, which together are the share's: the first one is
  // the share itself, the others stand at the end. What has arrived has arrived of all of them.
  // References to shares end here.
  void split(size_t share, const std::vector<std::vector<transport::TileRange>>& parts);

  // Begins a second way, which the share does not have, with these legs, and ends it: what has come
  // of it and is not added yet is dropped.
  void begin_second(Share& share, std::vector<Leg> legs);
  void end_second(Share& share);

  // Adds those cells of the rectangle that had not arrived. kInvalid, and nothing is added, if it
  // doesn't lie within the dispatch.
  Status add(Share& share, const transport::Partial& partial, ThreadTeam& team);
  // The same of a leg of its second way.
  Status add_second(Share& share, Leg& leg, const transport::Partial& partial, ThreadTeam& team);
  // out[row] += fp32(sum) once done(). Rows in the result are left unspecified.
  //   out [num_rows, hidden] FP32
  std::vector<RowFailure> finish(float* out, ThreadTeam& team);

  // Nobody is asked with it any more.
  void release_payload() { payload_.reset(); }

  // It can't be completed any more: the first reason counts.
  void fail(Error why);
  const std::optional<Error>& failure() const { return failure_; }

 private:
  Status check_rectangle(const transport::Partial& partial) const;
  void note_failures(const transport::Partial& partial);

  const transport::WireLimits limits_;
  int32_t layer_ = -1;
  int64_t num_rows_ = 0;
  transport::SharedBuffer payload_;
  size_t payload_bytes_ = 0;
  std::vector<Share> shares_;
  std::optional<Error> failure_;
  std::vector<int64_t> sums_;           // [num_rows, hidden]
  std::vector<int32_t> lowest_failed_;  // [num_rows] lowest failed expert, or kNone
};

}  // namespace atl::coordinator
