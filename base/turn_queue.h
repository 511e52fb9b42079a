// Things that wait, of clients that take turns.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "base/check.h"

namespace atl {

// What one client has in it comes in order. One thread at a time.
template <typename T>
class TurnQueue {
 public:
  void push(const std::string& client, T thing) {
    std::deque<T>& waiting = by_client_[client];
    if (waiting.empty()) turns_.push_back(client);
    waiting.push_back(std::move(thing));
    ++size_;
  }

  // Of the client whose turn it is; nullopt: nothing waits.
  std::optional<T> pop() {
    if (turns_.empty()) return std::nullopt;
    const auto at = by_client_.find(turns_.front());
    CHECK(at != by_client_.end());
    T thing = std::move(at->second.front());
    at->second.pop_front();
    if (at->second.empty()) {
      by_client_.erase(at);
    } else {
      turns_.push_back(turns_.front());
    }
    turns_.pop_front();
    --size_;
    return thing;
  }

  // The newest of the client that has most in here.
  T drop_from_longest() {
    const auto at = std::max_element(
        by_client_.begin(), by_client_.end(),
        [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
    CHECK(at != by_client_.end());
    T thing = std::move(at->second.back());
    at->second.pop_back();
    if (at->second.empty()) {
      std::erase(turns_, at->first);
      by_client_.erase(at);
    }
    --size_;
    return thing;
  }

  size_t size() const { return size_; }

 private:
  std::map<std::string, std::deque<T>> by_client_;  // without empty ones
  std::deque<std::string> turns_;                   // each client with something, once
  size_t size_ = 0;
};

}  // namespace atl
