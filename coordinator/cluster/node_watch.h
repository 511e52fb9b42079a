// What the thread that computes is told of its nodes, and what it tells of them: the seam between
// dispatching and keeping nodes alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"

namespace atl::coordinator {

struct NodeNews {
  enum class Kind : uint8_t {
    kSuspect,  // silent for a while: better not asked, if there is somebody else
    kTrusted,  // and heard again
    kLost,     // gone, or as good as
    kJoined,   // a new life of it is greeted and has loaded its tiles
    kPlan,     // who owns which tiles from now on, also nodes that were not there before
  };
  // Of kPlan.
  struct Owner {
    std::string name;
    std::vector<int> tiles;         // ascending
    bool is_leaving = false;        // not to be asked if there is anybody else
    std::vector<int> standby = {};  // ascending: kept in RAM beside them
    // Ascending: what it is asked for now and then, beside others, to see how fast it is.
    std::vector<int> tried = {};
  };
  Kind kind = Kind::kLost;
  size_t node = 0;                      // of all but kPlan
  uint64_t life = 0;                    // kJoined: which one, from 1 up
  SessionId session;                    // kJoined: what the node calls this life of the two's use
  std::string why;                      // kSuspect, kLost
  std::vector<std::byte> data_address;  // kJoined
  std::vector<Owner> plan;              // kPlan: [node], those known so far first
};

// How fast a node answered since this was told last, links and queues counted in.
struct NodeSpeed {
  int answers = 0;  // that were timed
  double seconds_per_tile =
      0;                     // their mean, made comparable: as if all were of the same dispatches
  double tried_seconds = 0;  // likewise, for all tiles of Owner::tried; 0: not tried
};

// Implemented by whoever keeps the nodes; all calls come from the dispatcher's thread and none
// blocks. Whoever has news wakes the dispatcher's transport.
class NodeWatch {
 public:
  virtual ~NodeWatch() = default;
  // What happened since the last call, in order.
  virtual std::vector<NodeNews> take_news() = 0;
  // The dispatcher gave this life of a node up: it is not asked again before a kJoined. Whoever
  // watches logs it, once for each loss.
  virtual void given_up(size_t node, uint64_t life, const std::string& why) = 0;
  // [node], while there is something to tell.
  virtual void measured(const std::vector<NodeSpeed>& /*speeds*/) {}
  // Whether a lost node may be expected to join again.
  virtual bool brings_back() const = 0;
};

}  // namespace atl::coordinator
