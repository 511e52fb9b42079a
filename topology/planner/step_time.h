// How long a step takes: a formula of data, with the time of each part and of each node.
//
// The model: layers follow each other. In a layer the coordinator computes attention and router,
// sends the rows to all nodes that own tiles, computes the shared experts meanwhile, waits for the
// slowest node, and adds up. A node reads what is not in its RAM from its drives while it computes
// the rest. Nodes on one machine share its memory and cores. docs/planning.md has the formulas.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "topology/planner/rates.h"

namespace atl::topology {

struct PlannedMachine {  // of a node
  std::string name;
  std::string host;  // nodes with the same one share its rates; "": a machine of its own
  MachineRates rates;
  int threads = 0;                             // 0: all cores
  uint64_t ram_bytes = 0;                      // that the process may take; 0: not bounded
  std::vector<double> drive_bytes_per_second;  // empty: nothing can be read while it serves
  double nic_bytes_per_second = 0;             // 0: no network between it and the coordinator

  double drives() const;
};

struct PlannedCoordinator {
  std::string host;  // that it shares with nodes
  MachineRates rates;
  uint64_t ram_bytes = 0;  // 0: not bounded
  double drive_bytes_per_second = 0;
  double nic_bytes_per_second = 0;
  // A GPU. No memory: there is none.
  std::string device_name;
  uint64_t device_memory_bytes = 0;
  MachineRates device;
  int rows_max = 512;  // of a step of a prompt
};

// Who keeps what.
struct Share {
  int tiles = 0, standby = 0;  // of each expert
  double resident = 1;         // share of its own tiles that its RAM holds
  friend bool operator==(const Share&, const Share&) = default;
};

// A step's rows.
struct StepRows {
  double rows = 0;
  double attended = 0;  // positions attended to, summed over rows
  double read = 0;      // positions read from the cache, summed over passes through it
  double head_rows = 0;
};
StepRows decode_rows(double sequences, double context);
// Rows begin .. begin + count of one prompt; the last one gets logits if it `ends`.
StepRows prompt_rows(double begin, double count, bool ends);

struct NodeTime {      // of one MoE layer
  double network = 0;  // there and back
  double compute = 0;  // on the machine alone
  double drive = 0;    // reading what is not in RAM, meanwhile
  double all = 0;      // from sending to the last byte back
  double drive_bytes = 0;
};

// Seconds of a whole step.
struct StepTime {
  double projections = 0, absorbed = 0, core = 0;  // attention
  double router = 0, shared = 0, dense = 0, head = 0, overhead = 0;
  double experts = 0;  // waited for after the shared experts
  double add_up = 0;   // nodes' sums
  double total = 0;
  double hit_rate = 1;          // of experts that are wanted, over all nodes
  std::vector<NodeTime> nodes;  // [node] of one MoE layer
  int slowest = -1;             // node, -1: none owns a tile
};

struct PlannedCluster {
  ModelShape model;
  PlannedCoordinator coordinator;
  std::vector<PlannedMachine> nodes;
  bool on_device = false;  // the coordinator computes on its GPU
  // The one node lives in the coordinator's process, on its machine.
  bool local_node = false;

  const MachineRates& coordinator_rates() const {
    return on_device ? coordinator.device : coordinator.rates;
  }
};

StepTime step_time(const PlannedCluster& cluster, const std::vector<Share>& shares,
                   const StepRows& rows);

// Of a message, beside its bytes: from a thread that sends to one that has received, TCP on a quiet
// network of one switch; and through shared memory. Measured: docs/planning.md, "Constants".
inline constexpr double kLinkSeconds = 30e-6;
inline constexpr double kSharedMemorySeconds = 6e-6;
inline constexpr double kPartialValueBytes = 6;  // of an answer: 48 bits

}  // namespace atl::topology
