// Expert nodes as child processes of this one, for `--nodes N`.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/memory_options.h"
#include "cli/numerics.h"
#include "topology/thread_plan.h"
#include "transport/data/transport.h"

namespace atl::cli {

struct ChildNodeOptions {
  std::filesystem::path model_dir;
  std::string program = "/proc/self/exe";   // the atoll executable
  std::vector<topology::TeamPlan> threads;  // of each node
  bool spin = false;
  transport::TransportKind transport = transport::TransportKind::kAuto;
  NumericsProfile numerics;
  MemoryOptions memory;  // of_node() of each
  int64_t rows_max = 512;
};

// Starts `atoll node` once for each team of threads (this very executable), named n0.. and
// listening on loopback ports of their choice. They end with this process, however it ends.
class ChildNodes {
 public:
  // LoadError if one doesn't say within a minute that it is ready.
  explicit ChildNodes(const ChildNodeOptions& options);
  ~ChildNodes();

  // "host:port" of each node's control server.
  const std::vector<std::string>& addresses() const { return addresses_; }
  std::vector<pid_t> pids() const;  // for tests that end a node
  static std::string name(int node) { return "n" + std::to_string(node); }

 private:
  struct Children;
  std::unique_ptr<Children> children_;
  std::vector<std::string> addresses_;
};

std::string_view to_string(transport::TransportKind kind);

}  // namespace atl::cli
