// What nodes and experts did so far, as metrics and the status page show it. A value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/cluster/dispatcher.h"
#include "coordinator/engine/decode_step.h"
#include "transport/control/control.h"

namespace atl::coordinator {

struct ClusterSnapshot {
  struct Node {
    std::string name;
    bool alive = true;         // it is asked
    std::string state;         // of its membership: "ready", "dialing" and so on, or "draining"
    std::string lost_because;  // the last time, until it is back
    uint64_t losses = 0;
    uint64_t restarts = 0;  // that brought it back
    int num_tiles = 0;      // of each expert, that it is asked for
    int num_standby = 0;    // of each expert, that it keeps in RAM beside them
    uint32_t num_threads = 0;
    NodeTraffic traffic;
    bool stats_known = false;  // the node told them, now or earlier
    transport::NodeStats stats;
  };
  std::vector<Node> nodes;  // none of those that were removed
  Epoch epoch;              // of who is asked for what
  // [num_hidden_layers][n_routed_experts] rows that chose the expert; empty for a dense layer.
  std::vector<std::vector<uint64_t>> expert_rows;
  StepTimes times;
  HintStats hints;
};

}  // namespace atl::coordinator
