// Which threads run on which cores. Pure functions of a Machine (machine.h).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "topology/machine.h"

namespace atl::topology {

// One processor (the kernel's number) for each member of a team of `num_threads`: a core of its own
// each, in as few NUMA domains as possible, and there spread over the last-level caches. Empty if
// there are more threads than cores: then threads are left to the kernel, and sleep when they wait.
//   numa_node  the kernel's number of the only domain whose cores are used
std::vector<int> thread_cpus(const Machine& machine, int num_threads,
                             std::optional<int> numa_node = {});

// kAuto pins only what fills all cores: with fewer threads another process with the same idea would
// take the same cores while others stand idle. kOn pins whatever has enough cores.
enum class PinMode { kAuto, kOn, kOff };
std::string_view to_string(PinMode mode);

struct TeamRequest {
  int num_threads = 0;  // 0: one per core that can be used
  PinMode pin = PinMode::kAuto;
  std::optional<int> numa_node = std::nullopt;  // use the cores of this domain only
};
struct TeamPlan {
  int num_threads = 1;
  std::vector<int> cpus;  // [num_threads] or empty: not pinned
  std::string reason;     // why it is or isn't pinned: "more threads than the 2 cores"
  std::optional<int> numa_node = std::nullopt;
  friend bool operator==(const TeamPlan&, const TeamPlan&) = default;
};
// LoadError if the machine has no such domain, or no core in it.
TeamPlan plan_team(const Machine& machine, const TeamRequest& request);
// "2 threads in NUMA domain 1, on processors 2,3", "4 threads, not pinned: more threads than the 2
// cores".
std::string describe(const TeamPlan& plan);

// A coordinator and nodes that share one machine.
struct SharedPlan {
  TeamPlan coordinator;
  std::vector<TeamPlan> nodes;
  bool cores_suffice = false;  // every thread can have a core of its own: waiting ones may spin
};
// Nodes go round the NUMA domains in turn, those of one domain share its cores equally, at least
// one thread each; on a machine of one domain none is named. Where all threads find a core, no two
// plans name the same one.
SharedPlan plan_shared(const Machine& machine, int num_nodes, const TeamRequest& coordinator);

}  // namespace atl::topology
