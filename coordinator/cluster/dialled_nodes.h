// Expert nodes that others start, on this machine or elsewhere: dialled at their addresses.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "coordinator/cluster/node_source.h"

namespace atl::coordinator {

struct DialledNode {
  std::string name;
  std::string address;  // "HOST:PORT" of its control port
};

// Any thread.
class DialledNodes final : public NodeSource {
 public:
  DialledNodes(std::vector<DialledNode> nodes, transport::ControlSecurity security);

  // A node that is not there yet, or another address of one that is, from the next open() on.
  void set(int node, DialledNode dialled);

  int num_nodes() const override;
  std::string name(int node) const override;
  std::string address(int node) const;
  Result<std::unique_ptr<transport::NodeClient>> open(int node) override;
  // The node goes on; what this process is doing with it ends.
  std::string end(int node) override;
  bool reopens() const override { return true; }
  bool waits() const override { return true; }

 private:
  const transport::ControlSecurity security_;
  mutable std::mutex mutex_;
  std::vector<DialledNode> nodes_;
  std::map<int, std::shared_ptr<std::atomic<bool>>> given_up_;  // of each node's last open()
};

}  // namespace atl::coordinator
