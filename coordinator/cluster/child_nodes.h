// Expert nodes as child processes of this one, for `--nodes N`.
#pragma once

#include <sys/types.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/child_process.h"
#include "coordinator/cluster/node_source.h"

namespace atl::coordinator {

struct ChildNodesOptions {
  std::string program = "/proc/self/exe";           // the atoll executable
  std::vector<std::vector<std::string>> arguments;  // [node] after the program
};

// Each is started with its end of a pair of sockets as descriptor 3, over which it is controlled:
// it listens nowhere, and nobody else can speak to it. They are named n0.. and end with this
// process, however it ends.
class ChildNodes final : public NodeSource {
 public:
  explicit ChildNodes(ChildNodesOptions options);

  static std::string name_of(int node) { return "n" + std::to_string(node); }

  int num_nodes() const override { return static_cast<int>(options_.arguments.size()); }
  std::string name(int node) const override { return name_of(node); }
  Result<std::unique_ptr<transport::NodeClient>> open(int node) override;
  std::string end(int node) override;
  bool reopens() const override { return true; }
  std::vector<pid_t> pids() const override;

 private:
  const ChildNodesOptions options_;
  const std::string program_;  // resolved
  mutable std::mutex mutex_;
  std::vector<ChildProcess> processes_;  // [node]
};

}  // namespace atl::coordinator
