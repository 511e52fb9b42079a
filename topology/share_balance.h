// Shares that follow measured speed: which node is asked for which tile, so that a node that has
// become slow does not hold all others up at every layer. Pure: no I/O, no thread, no clock of its
// own.
//
// All nodes work on the same dispatches, and each dispatch waits for the last one. A node's time is
// what it takes for a tile, all costs of its link included, times its tiles. A tile goes from the
// node that takes longest to one that would be faster with it, again and again; the result is only
// followed if it is much faster than what is, and has been for some looks in a row. What is planned
// for equal nodes is taken again as soon as it is as good: then nodes are as fast as they were.
#pragma once

#include <cstddef>
#include <vector>

namespace atl::topology {

// One node since the last look.
struct MeasuredNode {
  bool is_there = true;         // it may be asked
  int answers = 0;              // that were timed
  double seconds_per_tile = 0;  // their mean, of comparable dispatches
  // What all its tiles by the plan would take it, if that was tried while it had fewer; 0: not.
  double planned_seconds = 0;
};

struct BalanceOptions {
  // Tiles move if the slowest node's time becomes at most this much of what it is, and that is less
  // by at least so many seconds, at so many looks in a row.
  double worth = 0.75;
  double gain_seconds_min = 500e-6;
  int looks = 3;
  // The plan is taken again if its slowest node takes at most this much of the time then, at so
  // many looks in a row.
  double as_good = 1.05;
  int looks_back = 2;
  int answers_min = 4;  // of a node that has tiles, for a look to count
};

class ShareBalancer {
 public:
  explicit ShareBalancer(BalanceOptions options = {}) : options_(options) {}

  // From here on this is the plan, and what is followed.
  //   tiles  [node] who owns what, ascending
  //   kept   [node] what it keeps in RAM, its own among it: a tile may move to it at once
  //   room   [node] tiles that it can keep in all; others move to it as far as there is room. Less
  //          than it keeps: none do
  void set_plan(std::vector<std::vector<int>> tiles, std::vector<std::vector<int>> kept,
                std::vector<int> room);
  const std::vector<std::vector<int>>& plan() const { return plan_; }

  // Looks at the nodes, of which there are as many as in the plan; true if the tiles are others
  // from here on.
  bool look(const std::vector<MeasuredNode>& nodes);
  const std::vector<std::vector<int>>& tiles() const { return tiles_; }
  bool is_as_planned() const { return tiles_ == plan_; }

 private:
  bool may_take(size_t node, int tile, const std::vector<std::vector<int>>& tiles) const;
  std::vector<std::vector<int>> best(const std::vector<double>& seconds) const;

  const BalanceOptions options_;
  std::vector<std::vector<int>> plan_, tiles_, kept_;
  std::vector<int> room_;
  int worth_in_a_row_ = 0, as_good_in_a_row_ = 0;
};

}  // namespace atl::topology
