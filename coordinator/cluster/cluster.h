// The coordinator's view of its expert nodes: opened, greeted, given the plan, loaded, and from
// then on watched. A node that dies or hangs is ended, started again, greeted, loaded and handed to
// the dispatcher, by a thread of its own: whoever computes never waits for that.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "coordinator/cluster/dispatcher.h"
#include "coordinator/cluster/membership.h"
#include "coordinator/cluster/node_source.h"
#include "coordinator/cluster/node_watch.h"
#include "coordinator/cluster/placement_view.h"
#include "topology/placement.h"
#include "transport/control/control.h"
#include "transport/data/transport.h"

namespace atl::coordinator {

struct ClusterOptions {
  transport::ModelIdentity identity;
  transport::WireLimits limits;
  SessionId session;
  std::string coordinator_name = "coordinator";
  MemberTimes times;
  // A node that loads its tiles and has read no byte for so long is given up.
  std::chrono::milliseconds load_patience{60'000};
};

// Any thread, unless it says otherwise; control calls block.
class Cluster final : public NodeWatch {
 public:
  // Opens every node and says hello, connects the data plane and hands out the plan; loading goes
  // on in the nodes. LoadError names the node and what it answered. The transport, which is
  // borrowed, and this call belong to the engine's thread.
  Cluster(transport::Transport& transport, const Clock& clock, ClusterOptions options,
          const topology::Placement& placement, std::unique_ptr<NodeSource> source);
  ~Cluster() override;

  struct NodeLoad {
    std::string name;
    uint64_t bytes_loaded = 0, bytes_total = 0;
  };
  // How far the nodes are with loading, added up; LoadError if one failed before watch().
  struct LoadState {
    bool ready = false;  // every node can answer
    bool warm = false;   // and has in RAM what it is to keep there
    uint64_t bytes_loaded = 0, bytes_total = 0, resident_bytes = 0;
    std::vector<NodeLoad> nodes;  // each of them
  };
  LoadState load_state();

  // As they were opened first; for the dispatcher.
  std::vector<NodeLink> links() const;
  SessionId session() const { return options_.session; }
  const NodeSource& source() const { return *source_; }

  // All are ready: from here on they are sent heartbeats and kept alive.
  void watch();

  struct NodeStatus {
    std::string name;
    Member::State state = Member::State::kJoining;
    uint64_t losses = 0;
    uint64_t restarts = 0;     // that succeeded
    std::string lost_because;  // the last time; "" while it is ready
  };
  std::vector<NodeStatus> status() const;

  struct NamedStats {
    std::string name;
    uint32_t num_threads = 0;
    transport::NodeStats stats;
  };
  // Nodes that don't answer are left out, with a log line when one begins not to.
  std::vector<NamedStats> stats();
  // Watches no more, closes the session at every node and, if they are ours, ends them.
  enum class Nodes : uint8_t { kKeep, kStop };
  void close(Nodes nodes);

  // For the dispatcher.
  std::vector<NodeNews> take_news() override;
  void given_up(size_t node, uint64_t life, const std::string& why) override;
  bool brings_back() const override;

 private:
  struct Node {
    Node(std::string name, std::vector<int> owned, MemberTimes times, Clock::TimePoint now)
        : name(std::move(name)), owned(std::move(owned)), member(times, now) {}
    const std::string name;
    const std::vector<int> owned;
    std::shared_ptr<transport::NodeClient> control;  // null while there is none
    transport::HelloReply greeting;
    transport::PeerId peer;  // of its first life
    Member member;
    uint64_t heartbeats = 0;
    bool is_silent = false;  // it did not tell its statistics last time
    // News that the dispatcher has not taken: what came later replaces what it makes void.
    std::optional<NodeNews> lost, joined, trust;
    std::thread keeper;
  };
  struct Greeted {
    std::shared_ptr<transport::NodeClient> control;
    transport::HelloReply reply;
  };

  Result<Greeted> greet(size_t node);
  Result<Greeted> join(size_t node);
  Status await_ready(const Greeted& greeted);
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
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Node>> nodes_;
  bool watching_ = false;
  bool stopping_ = false;
};

}  // namespace atl::coordinator
