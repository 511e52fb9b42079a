// A plan as a person and as a script read it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "topology/planner/planner.h"

namespace atl::cli {

struct PlanReport {
  topology::PlanRequest request;
  topology::Plan plan;
  std::vector<std::string> assumed;
  std::vector<std::string> what_if;    // KEY=VALUE
  std::optional<topology::Plan> base;  // without what_if
  double plan_seconds = 0;             // that planning took, once the model was opened
};

// A table, a bar for each node, and lines: none longer than 80 columns.
std::string plan_text(const PlanReport& report);
std::string plan_json(const PlanReport& report);

}  // namespace atl::cli
