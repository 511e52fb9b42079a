// What a network adds to dispatches, of a trace. Pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cli/trace_file.h"

namespace atl::cli {

struct RowBytes {
  double out = 0, in = 0;  // of one row of a dispatch
};

// Dispatches of so many rows to one node. Times in seconds: sent until answered, without the node's
// work and queue. No clock is compared with another.
struct NetCell {
  int64_t rows = 0;
  uint64_t dispatches = 0;
  double median = 0, low = 0, high = 0;  // 10 and 90 of 100
  double bytes_out = 0, bytes_in = 0;    // of one dispatch
  bool is_slow = false;                  // twice the middle node's, and 50 us more
};
struct NodeNet {
  std::string name;
  std::vector<NetCell> cells;  // by rows: one, the most of those up to 16, the most of all
};

// Of nodes in the order of their names. LoadError if no dispatch was seen from both sides.
std::vector<NodeNet> net_times(const Trace& trace, const std::map<std::string, RowBytes>& bytes);

}  // namespace atl::cli
