// The coordinator's view of its expert nodes: opened, greeted, given the plan, loaded, and from
// then on watched. A node that dies or hangs is ended, started or dialled again, greeted, loaded
// and handed to the dispatcher, by a thread of its own: whoever computes never waits for that.
//
// What a node is to keep in RAM is planned anew when one has been gone for a while (grace), comes
// back, is drained or resumed, or when nodes are added and removed: those that stay are told first
// and load in the background, then the dispatcher is told whom to ask.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/threads.h"
#include "coordinator/cluster/dispatcher.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/node_source.h"
#include "coordinator/cluster/node_watch.h"
#include "coordinator/cluster/placement_view.h"
#include "topology/placement.h"
#include "topology/share_balance.h"
#include "transport/control/control.h"
#include "transport/data/transport.h"

namespace atl::coordinator {

struct ClusterOptions {
  transport::ModelIdentity identity;
  transport::WireLimits limits;
  SessionId session;
  std::string coordinator_name = "coordinator";
  MemberTimes times;
  // A node that is gone for longer is planned without.
  std::chrono::milliseconds grace{10'000};
  // Of nodes that others start: the share of all tiles whose owners have to be there, for
  // LoadState::ready; or, for so long, an owner or a standby of each.
  double min_coverage = 1;
  std::chrono::milliseconds owners_patience{10'000};
  // Nodes that keep each tile, where there is room: [node] tiles of every expert that it can keep,
  // or topology::kRoomForAll; empty: all have room.
  int redundancy = 1;
  std::vector<int> room = {};
  // Tiles move from nodes that have become slow to others, and back (topology/share_balance.h): to
  // who keeps them already, or, with redundancy 1, once they are loaded where there is room.
  bool follows_speed = false;
  // A node that loads its tiles and has read no byte for so long is given up.
  std::chrono::milliseconds load_patience{60'000};
  Threads* threads = &system_threads();  // borrowed
};

// Any thread, unless it says otherwise; control calls block.
class Cluster final : public NodeWatch {
 public:
  // Opens every node and says hello, connects the data plane and hands out the plan; loading goes
  // on in the nodes. LoadError names the node and what it answered. Nodes that others start
  // (NodeSource::waits()) are left for watch() to dial. The transport, which is borrowed, and this
  // call belong to the engine's thread.
  Cluster(transport::Transport& transport, const Clock& clock, ClusterOptions options,
          const topology::Placement& placement, std::unique_ptr<NodeSource> source);
  ~Cluster() override;

  struct NodeLoad {
    std::string name;
    uint64_t bytes_loaded = 0, bytes_total = 0;
  };
  // How far the nodes are with loading, added up. LoadError if one failed before watch(), or if one
  // that was dialled is another than wanted (checkpoint, profile, version) before begin().
  struct LoadState {
    bool ready = false;  // every node, or enough of those that others start, can answer
    bool warm = false;   // and has in RAM what it is to keep there
    uint64_t bytes_loaded = 0, bytes_total = 0, resident_bytes = 0;
    std::vector<NodeLoad> nodes;  // each of them
  };
  LoadState load_state();

  // As they were opened first; for the dispatcher.
  std::vector<NodeLink> links() const;
  SessionId session() const { return options_.session; }
  const NodeSource& source() const { return *source_; }

  // From here on they are sent heartbeats and kept alive. All are ready, but those that others
  // start, which are dialled from here on.
  void watch();
  // Requests are served from here on: who is not there is gone.
  void begin();
  // Nodes that are not there, with why: "n2 at 10.0.0.2:7000 (connection refused)".
  std::vector<std::string> missing() const;

  struct NodeStatus {
    std::string name;
    Member::State state = Member::State::kDialing;
    bool is_draining = false;
    bool is_removed = false;  // a place that no node has any more
    uint64_t losses = 0;
    uint64_t restarts = 0;     // that succeeded
    std::string lost_because;  // the last time; "" while it is ready
  };
  std::vector<NodeStatus> status() const;  // [node]

  // Moves the node's tiles to others, which load them first; it stays connected. And back.
  // kInvalid: there is no such node, or no other one to take its tiles.
  Status drain(const std::string& name);
  Status resume(const std::string& name);
  // From now on these are the nodes, [node] as in the source, which knows them already: who owns no
  // tile of it and is `gone` is drained and then let go. Places stay; there are no fewer.
  struct Planned {
    std::vector<int> tiles;
    bool is_removed = false;
    bool is_moved = false;  // it has another address: what is at the old one is let go
    std::vector<int> standby = {};
    int room = topology::kRoomForAll;  // as in ClusterOptions
  };
  void set_nodes(const std::vector<Planned>& nodes);

  struct NamedStats {
    std::string name;
    uint32_t num_threads = 0;
    transport::NodeStats stats;
  };
  // Nodes that don't answer are left out, with a log line when one begins not to.
  // The control connections to all nodes that are there.
  struct Control {
    std::string name;
    std::shared_ptr<transport::NodeClient> client;
    SessionId session;
  };
  std::vector<Control> controls() const;
  std::vector<std::string> node_names() const;  // [node] in the dispatcher's order
  std::vector<NamedStats> stats();
  // Watches no more, closes the session at every node and, if they are ours, ends them.
  enum class Nodes : uint8_t { kKeep, kStop };
  void close(Nodes nodes);

  // For the dispatcher.
  std::vector<NodeNews> take_news() override;
  void given_up(size_t node, uint64_t life, const std::string& why) override;
  bool brings_back() const override;
  void measured(const std::vector<NodeSpeed>& speeds) override;

 private:
  struct Node {
    Node(std::string name, std::vector<int> owned, std::vector<int> standby, int room,
         MemberTimes times, Clock::TimePoint now, Member::First first)
        : name(std::move(name)),
          owned(std::move(owned)),
          standby(std::move(standby)),
          room(room),
          planned(this->owned),
          planned_standby(this->standby),
          member(times, now, first) {}
    const std::string name;
    std::vector<int> owned, standby;  // by the plan for all nodes
    int room;                         // tiles of every expert
    // By the plan that is in force or being loaded.
    std::vector<int> planned, planned_standby;
    std::vector<int> tried;    // what it would own if it were as fast as planned, if it owns less
    std::vector<int> told;     // what it was told to keep in this life, all together
    bool has_no_room = false;  // for more than it owns, as it said in this life
    bool refused = false;      // it said that it is another node than wanted
    bool draining = false, removed = false;
    bool is_new = false;  // the dispatcher doesn't know it yet
    bool gone = false;    // for longer than the grace period, draining or removed
    std::optional<Clock::TimePoint> lost_at;
    bool plan_due = false;                           // it has not been told `planned` yet
    bool warming = false;                            // it loads what is new in it
    SessionId session;                               // of this life
    std::string logged;                              // why it can't be reached, said once
    std::shared_ptr<transport::NodeClient> control;  // null while there is none
    transport::HelloReply greeting;
    transport::PeerId peer;  // of its first life
    Member member;
    uint64_t heartbeats = 0;
    bool is_silent = false;  // it did not tell its statistics last time
    // News that the dispatcher has not taken: what came later replaces what it makes void.
    std::optional<NodeNews> lost, joined, trust;
    std::unique_ptr<Thread> keeper;
  };
  struct Greeted {
    std::shared_ptr<transport::NodeClient> control;
    transport::HelloReply reply;
  };

  enum class Reached : uint8_t { kNo, kYes };
  Result<Greeted> greet(size_t node, Reached* reached = nullptr);
  Result<Greeted> join(size_t node, Reached* reached);
  Status await_ready(size_t node, const Greeted& greeted, SessionId session);
  void fail_join(Node& node, const Error& error, Reached reached);
  void start_keeper(size_t node);
  struct Coverage {
    double owners = 1, anybody = 1;
  };
  template <typename IsThere>
  Coverage coverage(const IsThere& is_there) const;
  bool is_covered();
  // Ascending.
  static std::vector<int> together(const std::vector<int>& tiles, const std::vector<int>& standby);
  topology::Placement whole_plan() const;
  std::vector<int> rooms() const;
  topology::Placement plan_of_equals() const;
  topology::Placement by_speed(const topology::Placement& plan);
  Node* find(const std::string& name);
  size_t place_of(const Node& node) const;
  void replan();
  void tend_plan();
  void tell_plan();
  void let_go(Node& node, std::unique_lock<std::mutex>& lock);
  void keep(size_t node);
  void observe(Node& node);
  void carry_out(Member::Order order, size_t node, std::unique_lock<std::mutex>& lock);
  void drop(size_t node, std::unique_lock<std::mutex>& lock);
  void bring_back(size_t node, std::unique_lock<std::mutex>& lock);
  void tell(NodeNews news);

  transport::Transport& transport_;
  const Clock& clock_;
  const ClusterOptions options_;
  const topology::Placement placement_;
  const std::vector<std::byte> data_address_;  // of the transport
  const std::unique_ptr<NodeSource> source_;

  mutable std::mutex mutex_;
  const std::unique_ptr<Condition> changed_;
  std::vector<std::unique_ptr<Node>> nodes_;
  bool watching_ = false;
  bool begun_ = false;
  std::optional<Clock::TimePoint> covered_since_;  // by owners and standbys
  bool stopping_ = false;
  Epoch epoch_;            // of the plan that nodes are told
  bool plan_told_ = true;  // to the dispatcher: all that are there have loaded it
  Clock::TimePoint planned_at_;
  std::optional<NodeNews> plan_news_;
  topology::ShareBalancer balancer_;
  topology::Placement balanced_plan_;  // that it was told
  std::unique_ptr<Thread> planner_;    // tells nodes their plans: none of them can hold a keeper up
};

}  // namespace atl::coordinator
