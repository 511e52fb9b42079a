// What the nodes of a cluster file tell of their machines, over their control addresses, and what a
// node answers there.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cli/cluster_file_option.h"
#include "topology/doctor/checks.h"

namespace atl::cli {

// A node's answer to "doctor" or "probe": JSON with `version`, `realtime_ns`, `machine_id` and
// `findings` or `probe`. Nothing is measured: figures are those that `atoll probe` kept.
//   file, name  what `atoll node` runs with; no file: of the machine alone
Result<std::string> look_at_this_node(const std::string& what, const ClusterFileOption& file);

// Asks all nodes of the file at once. Of each: whether it answers, version, clock, time there and
// back, and what its own doctor found, its name in front. LoadError: the file is wrong.
std::vector<topology::Finding> findings_of_nodes(const ClusterFileOption& file);
// What each node of the file tells of its machine, a JSON object: {"name", "probe"} or
// {"name", "error"} each.
std::string probes_of_nodes(const ClusterFileOption& file);

// Of such an answer. LoadError: it is none.
std::vector<topology::Finding> parse_findings(std::string_view answer, const std::string& node);

}  // namespace atl::cli
