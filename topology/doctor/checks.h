// The doctor: what is wrong with a machine, why it matters, and what to do. Pure functions of a
// snapshot.
#pragma once

#include <string>
#include <vector>

#include "topology/doctor/snapshot.h"

namespace atl::topology {

enum class Verdict : uint8_t {
  kOk,
  kUnknown,  // the system doesn't tell, or it doesn't matter here
  kWarning,  // slower, or less safe, than it could be
  kBlocker,  // it won't start, or not stay up
};
std::string_view to_string(Verdict verdict);

struct Finding {
  std::string name;  // "memlock", "mtu eth0"
  Verdict verdict = Verdict::kOk;
  std::string what;  // as it is
  std::string why;   // what that costs; "" if it is ok
  std::string fix;   // a command or a key; "" if it is ok
};

// All of them, in a fixed order; those of directories, ports, networks and secrets once for each.
std::vector<Finding> examine(const Snapshot& snapshot);
bool has_blockers(const std::vector<Finding>& findings);

}  // namespace atl::topology
