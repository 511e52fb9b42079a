// Placement: which node keeps which tiles of every expert in RAM. A pure function of data.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "base/ids.h"

namespace atl::topology {

// A versioned plan; the value that coordinator and nodes share. Every tile has one owner; a node
// may own none.
struct Placement {
  Epoch epoch{1};
  std::vector<std::vector<int>> tiles_of_node;  // [node], ascending tile indices
  // [node] ascending: further tiles that it keeps in RAM and is asked for when their owner is gone
  // or slow. Empty, or as long as tiles_of_node.
  std::vector<std::vector<int>> standby_of_node = {};

  int num_nodes() const { return static_cast<int>(tiles_of_node.size()); }
  // [node] what it keeps in RAM: its own and those that it stands by for, ascending.
  std::vector<std::vector<int>> kept_by_node() const;
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

// What a node has room for, in tiles of every expert.
inline constexpr int kRoomForAll = std::numeric_limits<int>::max();

// Standbys: further copies of the owners' tiles, so that each is kept by `redundancy` nodes where
// there is room. Each copy of a tile is at another node. One that is lost leaves its work to all
// others: of the tiles of one owner no node stands by for more than one beyond its part, which is
// in proportion to what it owns; and so are the sums over all owners, as far as that allows. Who
// owns no tile stands by for none. Second copies of all tiles come before third ones of any.
//   room    [node] tiles that it can keep in all; its own come first
//   result  [node] ascending
std::vector<std::vector<int>> standby_tiles(const std::vector<std::vector<int>>& tiles_of_node,
                                            int redundancy, const std::vector<int>& room);

// How far a plan is redundant: tiles that have at least two copies of all tiles.
struct Redundancy {
  int num_tiles = 0;
  int num_doubled = 0;  // kept by two nodes or more
  int num_full = 0;     // kept by as many as wanted
};
Redundancy redundancy_of(const Placement& placement, int wanted);

// The plan without some of its nodes, with standbys: a tile of theirs goes to who stands by for it,
// of several to the one that then has the least in proportion to what it owns by the plan; those
// that nobody has go as in tiles_without(). Copies that are missing then, or were before, are made
// where there is room. The same plan if all nodes are gone or nobody else owns a tile.
Placement placement_without(const Placement& placement, const std::vector<bool>& gone,
                            int redundancy, const std::vector<int>& room);

}  // namespace atl::topology
