// Who is asked for which tiles: their owners by the plan while they are there, and stand-ins for
// those that aren't. Pure: no I/O, no clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "transport/data/wire.h"

namespace atl::coordinator {

// Tiles as ranges, for plans and Dispatches. `tiles` ascend.
std::vector<transport::TileRange> to_ranges(const std::vector<int>& tiles);

int count_tiles(std::span<const transport::TileRange> tiles);

// One epoch's answer. A value: a dispatch under way keeps the one that it began with.
struct PlacementView {
  Epoch epoch;
  // [node] ascending, disjoint, adjacent ones joined. Every tile of the plan is at one node.
  std::vector<std::vector<transport::TileRange>> tiles_of_node;
  // [node] likewise: what it keeps in RAM by the plan while another one is asked for it; nothing
  // of who is not there. It is asked when that one is lost, refuses or is slow.
  std::vector<std::vector<transport::TileRange>> standby_of_node;

  // Of one layer; so far all layers are placed alike.
  std::span<const transport::TileRange> tiles(int32_t /*layer*/, size_t node) const {
    return tiles_of_node[node];
  }
  int num_tiles(size_t node) const;
  int num_standby(size_t node) const;
};

// The placement of nodes that come and go: a function of the plan and of who is there. Every change
// of who is asked raises the epoch by one.
class LivePlacement {
 public:
  // The plan; every node is there.
  //   owned    [node] tiles, ascending; empty: a spare
  //   standby  [node] further tiles that it keeps in RAM, ascending; empty: there are none
  LivePlacement(Epoch epoch, std::vector<std::vector<int>> owned,
                std::vector<std::vector<int>> standby = {});

  const PlacementView& view() const { return view_; }
  bool is_there(size_t node) const { return there_[node]; }

  // The node is not to be asked from now on: of its tiles each goes to who stands by for it, of
  // several to who holds least then; what nobody stands by for goes to who holds least, an owner's
  // tiles in one piece. If nobody else is there it keeps them. Nothing happens if it is out
  // already.
  void take_out(size_t node);
  // The node may be asked again: it holds what it owns, and its part of what nobody keeps who is
  // there.
  void put_back(size_t node);

  // Another plan, of the same tiles and of at least as many nodes; new ones are out. Who is out
  // owns what the plan says, and others hold it.
  void replan(std::vector<std::vector<int>> owned, std::vector<std::vector<int>> standby = {});

  // Whether `node` owns or stands by for all of these tiles by the plan, and so is likely to have
  // them in RAM.
  bool keeps(size_t node, std::span<const transport::TileRange> tiles) const;
  bool keeps(size_t node, int tile) const;
  // Who is to be asked for this tile.
  size_t holder_of(int tile) const;

 private:
  void rebuild();

  std::vector<std::vector<int>> owned_;    // [node]
  std::vector<std::vector<int>> standby_;  // [node]
  std::vector<bool> there_;                // [node]
  std::vector<size_t> holder_;             // [tile]
  PlacementView view_;
};

}  // namespace atl::coordinator
