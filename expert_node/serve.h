// The expert node: sessions of coordinators, the plan they hand over, and the loop that answers
// their Dispatches. It keeps no request state: a Dispatch says all that is needed to compute it.
//
// Threads: the data-plane thread owns the Transport and calls serve_some(); the control thread
// calls the NodeControl methods; a loader thread fills the tile store. They meet in the session
// table and the plan state, both under one lock that is never held while computing.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/thread_team.h"
#include "base/threads.h"
#include "expert_node/executor.h"
#include "expert_node/fair_queue.h"
#include "storage/tiles/tile_store.h"
#include "transport/control/control.h"
#include "transport/data/transport.h"
#include "transport/data/wire.h"

namespace atl::expert_node {

struct NodeOptions {
  std::string name = "node";
  transport::ModelIdentity identity;
  transport::WireRowType row_type = transport::WireRowType::kBf16;
  uint32_t rows_max = 512;                     // of a Dispatch: larger ones are not agreed on
  size_t piece_bytes = Executor::kPieceBytes;  // of an answer, about
  // What inspect() answers; control thread, and it must not take long. Empty: nothing.
  std::function<Result<std::string>(const std::string& what)> inspect = {};
  const Clock* clock = nullptr;          // borrowed; nullptr: a steady one
  Threads* threads = &system_threads();  // borrowed
};

// RAM that a node takes beside the tiles and what the tile store tells: the buffers of one Dispatch
// of rows_max rows and of its answer. All of it is taken when the node starts, or has this bound.
uint64_t node_buffer_bytes(const NodeOptions& options, const storage::ExpertCatalog& catalog,
                           int num_threads);

class ExpertNode final : public transport::NodeControl {
 public:
  // All references are borrowed and must outlive the node; team and transport belong to the
  // data-plane thread from here on.
  ExpertNode(NodeOptions options, ThreadTeam& team, storage::TileStore& tiles,
             transport::Transport& transport);
  ~ExpertNode() override;

  // Data-plane thread: answers what has arrived, fairly to the coordinators that ask
  // (fair_queue.h); true if there was something. Returns now and then while they go on asking.
  bool serve_some();
  // Data-plane thread: serves until stop(), sleeping when idle.
  // `each_round`, if there is one, is called after whatever it did, and at least every second.
  void serve_until_stopped(const std::function<void()>& each_round = {});

  // Control thread.
  Result<transport::HelloReply> hello(const transport::Hello& hello) override;
  Status apply_plan(SessionId session, const transport::Plan& plan) override;
  transport::NodeState state(SessionId session) override;
  transport::NodeStats stats(SessionId session) override;
  Result<transport::NodeTrace> trace(SessionId session, const transport::TraceAsk& ask) override;
  Result<std::string> inspect(const std::string& what) override;
  void close_session(SessionId session) override;
  void stop() override;

 private:
  struct Outgoing {
    std::vector<std::byte> header;
    transport::SharedBuffer payload;
    size_t payload_bytes = 0;
  };
  // A dispatch that came in; it refers into the message.
  struct Waiting {
    std::unique_ptr<transport::Message> message;
    transport::Dispatch dispatch;
    Clock::TimePoint arrived;  // of a trace
  };
  struct Session {
    SessionId id;
    std::string coordinator;
    transport::WireLimits limits;
    std::vector<std::byte> data_address;
    std::optional<transport::PeerId> peer;  // data-plane thread only; set when connected
    bool closing = false;
    Epoch epoch;  // of the plan that it gave last
    transport::NodeStats stats;
    // Data-plane thread only:
    std::string requests;         // for whom it computes, for log lines
    std::deque<Outgoing> outbox;  // what the transport would not take yet
    size_t outbox_bytes = 0;
    bool is_given_up = false;
    Clock::TimePoint waiting_since;  // the first of it
  };
  class LoadProgress;

  void connect_and_close_sessions();
  bool take_events();
  void take(transport::PeerId peer, std::unique_ptr<transport::Message> message);
  bool compute_next();
  void take_hint(const transport::Hint& hint);
  void take_note(Session& session, const transport::StepNote& note);
  bool plan_is_loaded();
  void compute(Session& session, const transport::Dispatch& dispatch, Clock::TimePoint arrived);
  Result<ExecutorCounts> run(const transport::Dispatch& dispatch,
                             const std::function<void(const Piece&)>& sink);
  size_t send_piece(Session& session, const transport::Dispatch& dispatch, const Piece& piece);
  size_t send_partial(Session& session, const transport::DispatchNames& names, const Piece& piece,
                      uint32_t row_begin, uint32_t num_rows);
  void send_refusal(Session& session, const transport::DispatchNames& names, const Error& error);
  void send(Session& session, std::span<const std::byte> header, transport::SharedBuffer payload,
            size_t payload_bytes);
  bool send_waiting();
  bool send_waiting(Session& session);
  void give_up(Session& session, const std::string& why);
  transport::SharedBuffer free_buffer(size_t bytes);
  void load(const std::vector<int>& tiles, const std::vector<int>& standby);
  void take_slots(const std::vector<int>& tiles, const std::vector<int>& standby);
  void load_more(Epoch epoch, const std::vector<int>& tiles);
  void start_loader(std::function<void()> load);
  std::shared_ptr<Session> session_of(transport::PeerId peer);
  std::shared_ptr<Session> open_session(SessionId id);

  const NodeOptions options_;
  ThreadTeam& team_;
  storage::TileStore& tiles_;
  transport::Transport& transport_;
  const std::vector<std::byte> data_address_;
  const SteadyClock steady_clock_;
  const Clock& clock_;
  Executor executor_;
  TraceRing trace_;  // of the data-plane thread
  // Data-plane thread:
  FairQueue<SessionId, Waiting> waiting_;
  std::vector<transport::SharedBuffer> buffers_;  // reused when nobody reads them
  std::set<std::string> logged_refusals_;

  std::mutex mutex_;
  std::map<SessionId, std::shared_ptr<Session>> sessions_;
  transport::NodeState plan_state_;
  std::vector<int> plan_tiles_;  // of the last plan
  bool is_loading_ = false;      // loader_ works
  std::unique_ptr<LoadProgress> load_progress_;
  std::unique_ptr<Thread> loader_;
  std::atomic<bool> sessions_changed_{false};
  std::atomic<bool> stopping_{false};
};

}  // namespace atl::expert_node
