// From a cluster file, and what was measured where it describes nothing, to what the planner plans.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/machine_probe.h"
#include "config/cluster_config.h"
#include "topology/planner/planner.h"

namespace atl::cli {

struct PlanSubject {
  topology::PlanRequest request;     // without its model
  std::vector<std::string> assumed;  // what nobody said, a line each
  int coordinator_threads = 1, node_threads = 1;
  uint64_t free_here_bytes = 0;   // 0: nothing is planned on this machine, or it doesn't tell
  std::vector<size_t> unbounded;  // nodes on this machine that share what the others leave
};

// Shares this machine's free memory among the nodes on it that have no budget, once the request
// has its model.
void share_memory_here(PlanSubject* subject);

// Context and KV cache: tokens of each sequence.
inline constexpr int64_t kPlanContext = 8192;

// Machines of a file read to plan. A machine is described by its memory's rate; nodes on loopback
// (and a coordinator without nodes elsewhere) that aren't are this one, for which `probe` is called
// once. LoadError names the key that is missing.
//   max_positions  of the model: the context is at most that
PlanSubject plan_subject(const config::ClusterConfig& config, int64_t max_positions,
                         const std::function<MachineFacts()>& probe);

// Further flags (as of --set) from a file that describes machines: `nodes` by name, `coordinator`.
std::vector<std::string> described_flags(const std::filesystem::path& file);

}  // namespace atl::cli
