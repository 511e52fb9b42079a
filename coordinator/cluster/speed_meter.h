// How fast nodes are, compared with each other: what they took for a tile of the same dispatches.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "coordinator/cluster/node_watch.h"

namespace atl::coordinator {

// What a node took for a tile, over all dispatches that it had a part in, is divided by what all
// nodes took on average for a tile of the same dispatches, so that a node that had a part in few of
// them, or in small ones, can be compared with others; times the average over all dispatches it is
// a time again. Sums, not means of ratios: one long pause in many short answers counts by its
// length. A value; no clock.
class SpeedMeter {
 public:
  struct Answer {
    size_t node = 0;
    int tiles = 0;
    std::chrono::nanoseconds took{};
  };
  // All answers to one dispatch, of at least two nodes; others are left out.
  void add_dispatch(int64_t num_rows, const std::vector<Answer>& answers);
  // One node's answer to a dispatch of so many rows that was sent beside others to try it.
  void add_trial(int64_t num_rows, const Answer& answer);

  bool has_any() const { return dispatches_ > 0; }
  // [node], of what was added since the last time.
  std::vector<NodeSpeed> take(size_t num_nodes);

 private:
  struct Sum {
    double own = 0,
           usual = 0;  // seconds: its own, and all nodes' for a tile, of the same dispatches
    int count = 0;
    void add(double seconds, double usual_seconds) {
      own += seconds;
      usual += usual_seconds;
      ++count;
    }
    double slowness() const { return count == 0 ? 0 : own / usual; }
  };
  struct Node {
    Sum asked;  // for a tile
    Sum tried;  // for all tiles tried
  };
  Node& node(size_t n) {
    if (n >= nodes_.size()) nodes_.resize(n + 1);
    return nodes_[n];
  }

  uint64_t dispatches_ = 0;
  double seconds_ = 0;  // of all nodes for a tile, over dispatches_
  std::vector<Node> nodes_;
  std::array<double, 24> last_{};  // by the power of two of rows: seconds for a tile; 0: none yet
};

}  // namespace atl::coordinator
