#include "cli/child_nodes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/child_process.h"
#include "base/log.h"

namespace atl::cli {
namespace {

// Reading the headers of a 163-shard checkpoint on a loaded machine takes seconds.
constexpr auto kReadyTimeout = std::chrono::seconds(60);
constexpr std::string_view kReadyWord = "listening ";

void add_thread_arguments(const topology::TeamPlan& plan, std::vector<std::string>* argv) {
  if (plan.numa_node) {
    argv->insert(argv->end(), {"--numa-node", std::to_string(*plan.numa_node)});
  }
  if (plan.cpus.empty()) {
    argv->insert(argv->end(), {"--threads", std::to_string(plan.num_threads), "--pin", "off"});
  } else {
    argv->insert(argv->end(), {"--cpus", fmt::format("{}", fmt::join(plan.cpus, ","))});
  }
}

}  // namespace

struct ChildNodes::Children {
  std::vector<ChildProcess> processes;
};

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

ChildNodes::ChildNodes(const ChildNodeOptions& options) : children_(std::make_unique<Children>()) {
  // Resolved here: in the child, /proc/self would be somebody else.
  const std::string program = std::filesystem::canonical(options.program).string();
  const int num_nodes = static_cast<int>(options.threads.size());
  for (int node = 0; node < num_nodes; ++node) {
    ChildOptions child;
    child.name = name(node);
    child.pipe_stdout = true;
    child.own_process_group = true;  // Ctrl-C: the coordinator needs them to the end
    child.argv = {program,       "node",        options.model_dir.string(),
                  "--name",      name(node),    "--listen",
                  "127.0.0.1:0", "--transport", std::string(to_string(options.transport))};
    const std::vector<std::string> numerics = options.numerics.arguments();
    child.argv.insert(child.argv.end(), numerics.begin(), numerics.end());
    const std::vector<std::string> memory = options.memory.of_node(name(node)).arguments();
    child.argv.insert(child.argv.end(), memory.begin(), memory.end());
    child.argv.insert(child.argv.end(), {"--rows-max", std::to_string(options.rows_max)});
    add_thread_arguments(options.threads[node], &child.argv);
    child.argv.insert(child.argv.end(), {"--log-level", std::string(to_string(log_level()))});
    if (options.spin) child.argv.push_back("--spin");
    child.argv.push_back("--force");  // memory of all processes together is checked before
    children_->processes.push_back(ChildProcess::start(child));
  }
  for (ChildProcess& process : children_->processes) {
    auto line = process.read_line(kReadyTimeout);
    if (!line) {
      throw LoadError(
          fmt::format("expert node {} did not start: {}", process.name(), line.error().message));
    }
    if (!line->starts_with(kReadyWord)) {
      throw LoadError(fmt::format("expert node {} said '{}', expected 'listening HOST:PORT'",
                                  process.name(), *line));
    }
    addresses_.push_back(line->substr(kReadyWord.size()));
  }
}

ChildNodes::~ChildNodes() = default;

std::vector<pid_t> ChildNodes::pids() const {
  std::vector<pid_t> pids;
  for (const ChildProcess& process : children_->processes) pids.push_back(process.pid());
  return pids;
}

}  // namespace atl::cli
