// Placement: which node keeps which tiles of every expert in RAM. A pure function of data.
#pragma once

#include <cstdint>
#include <vector>

#include "base/ids.h"

namespace atl::topology {

// A versioned plan; the value that coordinator and nodes share. Every tile has one owner; a node
// may own none.
struct Placement {
  Epoch epoch{1};
  std::vector<std::vector<int>> tiles_of_node;  // [node], ascending tile indices

  int num_nodes() const { return static_cast<int>(tiles_of_node.size()); }
  friend bool operator==(const Placement&, const Placement&) = default;
};

// Equal nodes: contiguous shares that differ by at most one tile, larger ones first. With more
// nodes than tiles the last ones own nothing.
Placement equal_placement(int num_tiles, int num_nodes);

// counts[n] contiguous tiles for node n. LoadError unless they sum up to num_tiles.
Placement placement_from_counts(int num_tiles, const std::vector<int>& counts);

// Scattered tiles as given. LoadError unless every tile has exactly one owner.
Placement placement_from_tiles(int num_tiles, std::vector<std::vector<int>> tiles_of_node);

// The plan without some of its nodes: their tiles go, one by one, to the node that then has the
// least of them in proportion to what it owns by the plan, so that the others share the work. The
// same plan if all nodes are gone or nobody else owns a tile.
//   gone  [node]
std::vector<std::vector<int>> tiles_without(const std::vector<std::vector<int>>& tiles_of_node,
                                            const std::vector<bool>& gone);

}  // namespace atl::topology
