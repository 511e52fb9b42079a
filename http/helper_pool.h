// A few threads for work that would hold up the server's thread. Private to the server.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/turn_queue.h"
#include "http/http_server.h"

namespace atl::http {

// One of the threads does short work only, so that it never waits for a long one. The others take
// long work first.
class HelperPool {
 public:
  // waiting_max: of each length of work.
  HelperPool(size_t num_threads, size_t waiting_max);
  ~HelperPool() { stop(); }
  HelperPool(const HelperPool&) = delete;
  HelperPool& operator=(const HelperPool&) = delete;

  void start();
  // Drops what has not begun, asks what runs to stop, and waits until it does.
  void stop();
  // Any thread. What doesn't fit comes back: this work or a newer one of a client with more.
  std::optional<HttpWork> add(HttpWork work);

 private:
  void loop(bool short_only);
  std::optional<HttpWork> next(bool short_only);

  const size_t num_threads_, waiting_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  TurnQueue<HttpWork> short_, long_;
  std::map<const void*, std::stop_source> running_;  // by who runs it
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace atl::http
