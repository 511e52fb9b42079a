#include "deployment/node_arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/log.h"
#include "deployment/numerics.h"

namespace atl::deployment {
namespace {

std::vector<std::string> arguments_of_threads(const topology::TeamPlan& plan) {
  std::vector<std::string> arguments;
  if (plan.numa_node) arguments = {"--numa-node", std::to_string(*plan.numa_node)};
  if (plan.cpus.empty()) {
    arguments.insert(arguments.end(),
                     {"--threads", std::to_string(plan.num_threads), "--pin", "off"});
  } else {
    arguments.insert(arguments.end(), {"--cpus", fmt::format("{}", fmt::join(plan.cpus, ","))});
  }
  return arguments;
}

}  // namespace

std::vector<std::string> arguments_of_node(const NodeArguments& node) {
  std::vector<std::string> arguments = {"node",        node.model_dir.string(),
                                        "--name",      node.name,
                                        "--transport", std::string(to_string(node.transport))};
  const auto add = [&arguments](const std::vector<std::string>& more) {
    arguments.insert(arguments.end(), more.begin(), more.end());
  };
  add(numerics_arguments(node.numerics));
  add(node.memory.arguments());
  add({"--rows-max", std::to_string(node.rows_max)});
  add(arguments_of_threads(node.threads));
  add({"--log-level", std::string(to_string(log_level()))});
  if (node.spin) add({"--spin"});
  if (node.mtp) add({"--mtp"});
  add({"--force"});  // memory of all processes together is checked before
  return arguments;
}

std::string_view to_string(transport::TransportKind kind) {
  switch (kind) {
    case transport::TransportKind::kAuto:
      return "auto";
    case transport::TransportKind::kShm:
      return "shm";
    case transport::TransportKind::kTcp:
      return "tcp";
  }
  return "?";
}

}  // namespace atl::deployment
