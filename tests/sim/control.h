// Control connections between the coordinator and its nodes, and where nodes come from.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "coordinator/cluster/node_source.h"
#include "tests/sim/network.h"
#include "tests/sim/node.h"
#include "tests/sim/world.h"

namespace atl::sim {

// Dials nodes or, with `children`, starts them itself and ends them.
class SimSource final : public coordinator::NodeSource {
 public:
  SimSource(World& world, Network& network, Machine& coordinator,
            std::vector<std::unique_ptr<SimNode>>& nodes, bool children)
      : world_(world),
        network_(network),
        coordinator_(coordinator),
        nodes_(nodes),
        children_(children) {}

  int num_nodes() const override { return num_nodes_known; }
  std::string name(int node) const override { return nodes_[static_cast<size_t>(node)]->name(); }
  Result<std::unique_ptr<transport::NodeClient>> open(int node) override;
  std::string end(int node) override;
  bool reopens() const override { return true; }
  bool waits() const override { return !children_; }

  int num_nodes_known = 0;

 private:
  World& world_;
  Network& network_;
  Machine& coordinator_;
  std::vector<std::unique_ptr<SimNode>>& nodes_;
  const bool children_;
};

}  // namespace atl::sim
