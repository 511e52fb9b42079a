// The coordinator's view of its expert nodes: dialled, greeted, given the plan, loaded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/progress.h"
#include "base/result.h"
#include "coordinator/cluster/dispatcher.h"
#include "coordinator/cluster/placement_view.h"
#include "topology/placement.h"
#include "transport/control/control.h"
#include "transport/data/transport.h"

namespace atl::coordinator {

// A node by its control side: over RPC, or in this process.
struct ClusterNode {
  std::string name;
  std::unique_ptr<transport::NodeClient> control;
};

struct ClusterOptions {
  transport::ModelIdentity identity;
  transport::WireLimits limits;
  SessionId session;
  std::string coordinator_name = "coordinator";
};

// Used by the engine's thread; the control clients block.
class Cluster {
 public:
  // Says hello to every node, connects the data plane and hands out the plan; loading goes on in
  // the nodes. LoadError names the node and what it answered. The transport is borrowed.
  Cluster(transport::Transport& transport, ClusterOptions options,
          const topology::Placement& placement, std::vector<ClusterNode> nodes);

  // How far the nodes are with loading, added up; LoadError if one failed.
  struct LoadState {
    bool ready = false;  // every node can answer
    bool warm = false;   // and has in RAM what it is to keep there
    uint64_t bytes_loaded = 0, bytes_total = 0, resident_bytes = 0;
  };
  LoadState load_state();

  std::vector<NodeLink> links() const { return links_; }
  SessionId session() const { return options_.session; }

  struct NamedStats {
    std::string name;
    uint32_t num_threads = 0;
    transport::NodeStats stats;
  };
  // Nodes that don't answer are left out, with a log line when one begins not to.
  std::vector<NamedStats> stats();
  // Closes the session at every node and, if they are ours, ends them.
  enum class Nodes : uint8_t { kKeep, kStop };
  void close(Nodes nodes);

 private:
  ClusterOptions options_;
  std::vector<ClusterNode> nodes_;
  std::vector<transport::HelloReply> replies_;
  std::vector<bool> silent_;  // [node] it did not tell its statistics last time
  std::vector<NodeLink> links_;
};

}  // namespace atl::coordinator
