#include "cli/net_times.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/result.h"

namespace atl::cli {
namespace {

constexpr int64_t kFewRows = 16;
constexpr double kSlowTimes = 2, kSlowSeconds = 50e-6;

using RowTimes = std::map<int64_t, std::vector<double>>;  // [rows] seconds

double at_share(const std::vector<double>& sorted, double share) {
  return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1) + 0.5)];
}

// Of all nodes: one, the most of those up to 16, the most of all.
std::set<int64_t> sizes_of(const std::map<std::string, RowTimes>& nodes) {
  std::set<int64_t> all, sizes;
  for (const auto& [name, times] : nodes) {
    for (const auto& [rows, seconds] : times) all.insert(rows);
  }
  if (all.contains(1)) sizes.insert(1);
  const auto above_few = all.upper_bound(kFewRows);
  if (above_few != all.begin()) sizes.insert(*std::prev(above_few));
  if (!all.empty()) sizes.insert(*all.rbegin());
  return sizes;
}

void mark_slow(std::vector<NodeNet>& nodes, int64_t rows) {
  std::vector<double> medians;
  std::vector<NetCell*> cells;
  for (NodeNet& node : nodes) {
    for (NetCell& cell : node.cells) {
      if (cell.rows != rows) continue;
      medians.push_back(cell.median);
      cells.push_back(&cell);
    }
  }
  if (medians.size() < 2) return;
  std::sort(medians.begin(), medians.end());
  const double middle = medians[(medians.size() - 1) / 2];
  for (NetCell* cell : cells) {
    cell->is_slow = cell->median > kSlowTimes * middle && cell->median > middle + kSlowSeconds;
  }
}

}  // namespace

std::vector<NodeNet> net_times(const Trace& trace, const std::map<std::string, RowBytes>& bytes) {
  std::map<std::pair<std::string, uint64_t>, int64_t> work;  // (node, dispatch): ns
  for (const Trace::Thread& thread : trace.threads) {
    if (thread.process == "coordinator") continue;
    for (const Trace::Event& event : thread.events) {
      if (event.what == "dispatch" || event.what == "queue") {
        work[{thread.process, event.id}] += event.length;
      }
    }
  }
  std::map<std::string, RowTimes> times;
  if (const Trace::Thread* engine = trace.find("coordinator", "engine")) {
    for (const Trace::Event& share : engine->events) {
      if (share.what != "share") continue;
      const auto done = work.find({share.node, share.id});
      if (done == work.end() || done->second > share.length) continue;
      times[share.node][share.rows].push_back(1e-9 *
                                              static_cast<double>(share.length - done->second));
    }
  }
  if (times.empty()) {
    throw LoadError("no dispatch was seen from both sides: do the nodes compute, and trace?");
  }
  std::vector<NodeNet> nodes;
  const std::set<int64_t> sizes = sizes_of(times);
  for (auto& [name, by_rows] : times) {
    NodeNet& node = nodes.emplace_back(NodeNet{name, {}});
    const auto told = bytes.find(name);
    const RowBytes row = told == bytes.end() ? RowBytes{} : told->second;
    for (const int64_t rows : sizes) {
      std::vector<double>& seconds = by_rows[rows];
      if (seconds.empty()) continue;
      std::sort(seconds.begin(), seconds.end());
      const auto n = static_cast<double>(rows);
      node.cells.push_back({rows, seconds.size(), at_share(seconds, 0.5), at_share(seconds, 0.1),
                            at_share(seconds, 0.9), n * row.out, n * row.in, false});
    }
  }
  for (const int64_t rows : sizes) mark_slow(nodes, rows);
  return nodes;
}

}  // namespace atl::cli
