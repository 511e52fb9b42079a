// SIGTERM, SIGINT and SIGHUP as a request to stop, for a process that has something to finish.
#pragma once

#include <functional>
#include <thread>

namespace atl::cli {

// Construct it before any thread is started: they inherit that these signals don't end the
// process. What comes before watch() waits for it. The signals stay blocked to the end of the
// process, so that finishing is not cut short either; SIGKILL does.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  // Calls `stop` for each of the signals, on a thread of its own, until this is destroyed. Once.
  void watch(std::function<void()> stop);

 private:
  std::thread watcher_;
};

}  // namespace atl::cli
