// Where a cluster's nodes come from: this process, children of it, machines that are dialled.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "transport/control/control.h"

namespace atl::coordinator {

class NodeSource {
 public:
  virtual ~NodeSource() = default;
  virtual int num_nodes() const = 0;  // may grow: a place that was given stays a node's
  virtual std::string name(int node) const = 0;
  // Starts the node, if it is ours to start, and opens its control connection. May block; calls for
  // different nodes come at once, for one node one after another.
  virtual Result<std::unique_ptr<transport::NodeClient>> open(int node) = 0;
  // Ends at once what open() began, also while it is used: calls under way fail. What became of it,
  // such as "exit code 1"; "" if there is nothing to say.
  virtual std::string end(int node) = 0;
  // Whether a node that was lost can be opened again.
  virtual bool reopens() const = 0;
  // Whether others start the nodes: one that can't be opened now may come later.
  virtual bool waits() const { return false; }
  virtual std::vector<pid_t> pids() const { return {}; }  // of nodes that are processes of ours
};

}  // namespace atl::coordinator
