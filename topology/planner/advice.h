// What holds a plan up, and what would help.
#pragma once

#include <string>
#include <vector>

#include "topology/planner/planner.h"

namespace atl::topology {

struct Bottleneck {
  std::string what;  // "n3: drives", "coordinator: memory rate", "network"
  double share = 0;  // of the step's time
};
Bottleneck bottleneck_of(const PlannedCluster& cluster, const std::vector<Share>& shares,
                         const StepRows& rows);

// The three changes of one thing that help the aim most, best first; each is planned anew.
std::vector<Change> best_changes(const PlanRequest& request, const Plan& plan,
                                 const std::vector<Alternative>& alternatives);

// Changes of one thing, each as small as possible, that make it fit; or of two things, if none of
// one does. Empty: nothing does.
std::vector<std::string> ways_out(const PlanRequest& request,
                                  const std::vector<Alternative>& alternatives);

}  // namespace atl::topology
