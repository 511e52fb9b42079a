// Dispatch and combine: rows out to the expert nodes, partial rows back and added.
//
// dispatch() rounds the rows to the wire type and sends each node the same payload with its own
// tiles; combine() waits until every tile of every row has answered and adds the integers. Two
// dispatches may be in flight, of one layer or of two; they are combined in any order. A node that
// is lost, refuses or makes no progress within the deadline has its part asked again at once, tile
// by tile from who keeps a copy in RAM by the plan, else from another living node (a node computes
// any tile that it can reach); only when none is left, or comes back soon, does combine() fail. Who
// refused because of a tile lives on. A node that was lost and joins again has its tiles back from
// the next dispatch on.
//
// One thread uses a Dispatcher: the one that owns the Transport.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/thread_team.h"
#include "base/trace_ring.h"
#include "coordinator/cluster/answer_times.h"
#include "coordinator/cluster/dispatch_in_flight.h"
#include "coordinator/cluster/node_watch.h"
#include "coordinator/cluster/placement_view.h"
#include "coordinator/cluster/speed_meter.h"
#include "transport/data/transport.h"
#include "transport/data/wire.h"

namespace atl::coordinator {

struct NodeLink {
  std::string name;
  transport::PeerId peer;
  std::vector<int> owned;                 // tiles by the plan, ascending; empty: a spare
  std::optional<SessionId> session = {};  // of this life; none: DispatcherOptions'
  bool is_there = true;                   // false: its first life will be told by NodeWatch
  std::vector<int> standby = {};          // tiles that it keeps in RAM beside its own, ascending
  std::vector<int> tried = {};            // as NodeNews::Owner::tried
};

struct DispatcherOptions {
  SessionId session;
  Epoch epoch{1};
  transport::WireLimits limits;
  // Longest silence of a node that owes an answer, while combine() waits for it, before it counts
  // as lost: kUsualTimes what it usually takes for so many rows, within these bounds. The longest
  // one for who is asked for tiles of others, which it reads from disk first, and while it isn't
  // known what is usual.
  std::chrono::milliseconds progress_deadline_min{1200};
  std::chrono::milliseconds progress_deadline{60000};
  // Hedging: a share that takes longer than so many times what is usual, and than 99 of 100 take,
  // or 8 times as long as the others of its dispatch, is also asked from who keeps its tiles in RAM
  // beside its node; what comes first counts. 0: no share is.
  double hedge_after = 0;
  // A node that is silent for so long, or for kUsualTimes what 99 of 100 of its answers take if
  // that is longer, is overdue: what it owes is also asked from others, and it is asked nothing
  // more until it answers something. A busy node is then late, not dead. 0: never.
  std::chrono::milliseconds overdue_after_min{0};
  // NodeWatch is told so often how fast nodes are, and those that have tiles to be tried with are
  // asked so many times as often. 0: nothing is measured.
  std::chrono::milliseconds measure_every{0};
  // How long a dispatch waits for the first one to be back when every node was lost.
  std::chrono::milliseconds return_patience{5000};
};
inline constexpr int kUsualTimes = 8;

// Per node, over the dispatcher's life.
struct NodeTraffic {
  uint64_t dispatches = 0, rows = 0;
  uint64_t hints = 0;  // sent
  uint64_t bytes_out = 0, bytes_in = 0;
  // Shares of this node that were also asked from others because it was late, and how many of these
  // the others answered first; times that it was overdue.
  uint64_t hedged = 0, hedges_won = 0, overdue = 0;
  uint64_t tried = 0;  // dispatches sent only to see how fast it is; among `dispatches`
};

class Dispatcher {
 public:
  // Most dispatches that may be in flight: while the nodes compute one, the coordinator computes
  // what the other needs.
  static constexpr size_t kInFlightMax = 2;

  // Ends a dispatch: who drops one that was not combined gives it up, and its answers are dropped
  // when they come.
  struct End {
    Dispatcher* dispatcher = nullptr;
    void operator()(DispatchInFlight* flight) const { dispatcher->end(flight); }
  };
  using Ptr = std::unique_ptr<DispatchInFlight, End>;

  // `watch` is borrowed; without one, who is lost stays lost.
  Dispatcher(transport::Transport& transport, ThreadTeam& team, const Clock& clock,
             DispatcherOptions options, std::vector<NodeLink> nodes, NodeWatch* watch = nullptr);

  const transport::WireLimits& limits() const { return options_.limits; }
  // Is told of every share that is whole, as an event of `kind`; borrowed.
  void set_trace(TraceRing* ring, uint8_t kind) {
    trace_ = ring;
    trace_kind_ = kind;
  }

  // Starts one layer's dispatch; fewer than kInFlightMax are in flight. What is returned must be
  // gone before this is.
  //   rows     [num_rows, hidden] FP32, borrowed until return
  //   ids      [num_rows, top_k], -1 for none; weights likewise
  Result<Ptr> dispatch(int32_t layer, int64_t num_rows, const float* rows, const int32_t* ids,
                       const float* weights);
  // Tells every living node which experts of a layer will probably be asked for, so that it may
  // read its tiles of them ahead. At any time, also between dispatch() and combine(). A node that
  // can't take it now goes without: no result depends on a hint.
  //   experts  ascending, none twice, each in range; nothing is sent if there are none
  void hint(int32_t layer, std::span<const int32_t> experts);
  // Tells every living node for whom the dispatches from here on are, for its log: ids of requests.
  // At any time; best effort, as hint().
  void announce(const std::string& request_ids);
  // Takes what has arrived; call now and then during long work between dispatch and combine.
  void poll();
  // Waits for the rest of this one, then out[row] += fp32(sum). Rows in the result are left
  // unspecified.
  //   out [num_rows, hidden] FP32
  Result<std::vector<RowFailure>> combine(Ptr flight, float* out);

  const std::vector<NodeLink>& nodes() const { return nodes_; }
  const std::vector<NodeTraffic>& traffic() const { return traffic_; }
  int num_living() const;
  bool alive(size_t node) const { return states_[node].alive; }
  // "" unless lost.
  const std::string& last_loss(size_t node) const { return states_[node].last_loss; }
  // Who is asked for what by the next dispatch.
  const PlacementView& placement() const { return placement_.view(); }

 private:
  struct NodeState {
    bool alive = true;
    bool suspect = false;
    bool is_leaving = false;
    uint64_t life = 1;
    std::string last_loss;
    AnswerTimes times;  // of this life
    // Since when it is silent, if it owes an answer.
    Clock::TimePoint last_progress;
    bool overdue = false;
    Clock::TimePoint alone_at{};  // it would have been overdue, had there been somebody else
    std::chrono::nanoseconds overdue_silence{0};  // that this process listened to since then
    // A dispatch that it was sent to see how fast it is, and whose answer is for nobody.
    struct Trial {
      DispatchId id;
      int64_t num_rows = 0;
      int64_t missing = 0;  // outputs of rows
      Clock::TimePoint sent;
    };
    std::optional<Trial> trial;
    Clock::TimePoint next_trial;
  };
  using Share = DispatchInFlight::Share;
  using Leg = DispatchInFlight::Leg;

  static std::vector<std::vector<int>> all_of(const std::vector<NodeLink>& nodes,
                                              std::vector<int> NodeLink::*tiles);
  transport::SharedBuffer free_buffer(size_t bytes);
  Ptr begin(int32_t layer, int64_t num_rows, transport::SharedBuffer payload, size_t payload_bytes);
  void end(DispatchInFlight* flight);
  Status ask(const DispatchInFlight& flight, Share& share);
  void ask_for_the_rest(DispatchInFlight& flight);
  struct Part {
    size_t node;
    std::vector<transport::TileRange> tiles;
  };
  // Whether somebody who does not keep a tile in RAM may be asked for it.
  enum class Readers : uint8_t { kNo, kYes };
  std::vector<Part> whom_to_ask(const Share& share, Readers readers = Readers::kYes,
                                std::optional<size_t> but = {}) const;
  bool ask_a_second_time(DispatchInFlight& flight, size_t share, Readers readers);
  Status send_dispatch(const DispatchInFlight& flight, size_t node, DispatchId id, Epoch epoch,
                       const std::vector<transport::TileRange>& tiles);
  std::string other_losses(size_t than) const;
  bool await_return();
  void handle(transport::Event event);
  bool note_refusal(int32_t layer, size_t node, Share& share, const Error& error);
  void take_partial(DispatchInFlight& flight, Share& share, const transport::Partial& partial);
  void take_second(DispatchInFlight& flight, Share& share, size_t leg,
                   const transport::Partial& partial);
  void end_share(DispatchInFlight& flight, Share& share);
  void take_news();
  void place();
  void lose_node(size_t node, const std::string& why);
  void drop_node(size_t node, const std::string& why);
  void suspect_node(size_t node);
  void join_node(const NodeNews& news);
  void take_plan(const std::vector<NodeNews::Owner>& plan);
  // Not to be asked while anybody else is there.
  bool is_better_left(size_t node) const {
    return states_[node].suspect || states_[node].is_leaving || states_[node].overdue;
  }
  SessionId session_of(size_t node) const {
    return nodes_[node].session.value_or(options_.session);
  }
  void await_answers();
  void excuse_silence();
  std::chrono::nanoseconds deadline_of(size_t node, std::span<const transport::TileRange> tiles,
                                       int64_t num_rows) const;
  void check_deadlines();
  // What is late is asked a second time; when the next one will be, at the earliest.
  Clock::TimePoint check_late();
  void overdue_node(size_t node);
  void try_nodes(const DispatchInFlight& flight);
  void take_trial(size_t node, const transport::Partial& partial);
  void measure(DispatchInFlight& flight);
  std::optional<size_t> node_of(transport::PeerId peer) const;

  transport::Transport& transport_;
  ThreadTeam& team_;
  const Clock& clock_;
  const DispatcherOptions options_;
  std::vector<NodeLink> nodes_;
  NodeWatch* const watch_;
  std::vector<NodeState> states_;  // [node]
  LivePlacement placement_;
  std::vector<NodeTraffic> traffic_;
  std::set<std::string> logged_refusals_;
  uint64_t next_id_ = 1;
  TraceRing* trace_ = nullptr;
  uint8_t trace_kind_ = 0;
  std::vector<transport::SharedBuffer> buffers_;  // reused when nobody reads them any more
  Clock::TimePoint listening_since_{};            // before that, answers may lie unread
  SpeedMeter speeds_;
  Clock::TimePoint measured_at_{};

  std::vector<DispatchInFlight*> in_flight_;             // in the order of their dispatch()
  std::vector<std::unique_ptr<DispatchInFlight>> idle_;  // with their buffers, for the next ones
};

}  // namespace atl::coordinator
