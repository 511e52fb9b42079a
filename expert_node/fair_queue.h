// What several coordinators ask of one node, in an order that is fair to them: of those that wait,
// the one that was served least is next, counted from when it last had nothing to ask. Two that are
// always busy get half of the time each, whatever sizes their dispatches have; one that asks for
// little waits for what is being computed and for nothing else. A coordinator's own items keep
// their order.
//
// Start-time fair queueing: P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
// There a packet's cost is known when it comes; here it is told when it is done.
//
// One thread's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <map>
#include <tuple>
#include <utility>

#include "base/check.h"

namespace atl::expert_node {

//   Client  ordered; who is served
template <typename Client, typename Item>
class FairQueue {
 public:
  void push(const Client& client, Item item) {
    Line& line = lines_[client];
    if (line.items.empty()) line.start = std::max(line.start, now_);
    line.items.push_back(std::move(item));
  }

  bool empty() const {
    return std::all_of(lines_.begin(), lines_.end(),
                       [](const auto& entry) { return entry.second.items.empty(); });
  }

  size_t size(const Client& client) const {
    const auto line = lines_.find(client);
    return line == lines_.end() ? 0 : line->second.items.size();
  }

  // The next one and whose it is; not empty.
  std::pair<Client, Item> pop() {
    auto next = lines_.end();
    for (auto it = lines_.begin(); it != lines_.end(); ++it) {
      if (it->second.items.empty()) continue;
      if (next == lines_.end() || it->second.goes_before(next->second)) next = it;
    }
    CHECK(next != lines_.end());
    now_ = next->second.start;
    std::pair<Client, Item> popped{next->first, std::move(next->second.items.front())};
    next->second.items.pop_front();
    return popped;
  }

  // What the client's last item took, before its next one is popped.
  void charge(const Client& client, double seconds) {
    CHECK(seconds >= 0);
    const auto line = lines_.find(client);
    if (line == lines_.end()) return;
    line->second.start += seconds;
    line->second.last_cost = seconds;
  }

  // With all that it still waits for.
  void remove(const Client& client) { lines_.erase(client); }

 private:
  struct Line {
    std::deque<Item> items;
    double start = 0;      // virtual seconds at which its first item begins
    double last_cost = 0;  // of two that may begin, who took less last time

    bool goes_before(const Line& other) const {
      return std::tie(start, last_cost) < std::tie(other.start, other.last_cost);
    }
  };
  std::map<Client, Line> lines_;
  double now_ = 0;  // the start of what was popped last
};

}  // namespace atl::expert_node
