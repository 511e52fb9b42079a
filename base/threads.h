// Starting threads and waiting, handed in like the clock: what keeps nodes, tiles and requests
// going gets its threads from here, so that a simulation can run all of them on one, in an order of
// its own and in time that it makes pass (tests/sim).
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>

#include "base/clock.h"

namespace atl {

// As std::condition_variable. Any thread.
class Condition {
 public:
  virtual ~Condition() = default;
  virtual void notify_all() = 0;
  // Both may return before they have been notified.
  virtual void wait(std::unique_lock<std::mutex>& lock) = 0;
  // False: the time has come.
  virtual bool wait_until(std::unique_lock<std::mutex>& lock, Clock::TimePoint time) = 0;
  virtual bool wait_for(std::unique_lock<std::mutex>& lock, std::chrono::nanoseconds time) = 0;

  template <typename Holds>
  void wait(std::unique_lock<std::mutex>& lock, const Holds& holds) {
    while (!holds()) wait(lock);
  }
  // Whether it holds.
  template <typename Holds>
  bool wait_until(std::unique_lock<std::mutex>& lock, Clock::TimePoint time, const Holds& holds) {
    while (!holds()) {
      if (!wait_until(lock, time)) return holds();
    }
    return true;
  }
};

class Thread {
 public:
  virtual ~Thread() = default;  // joins
  virtual void join() = 0;      // a second one does nothing
};

// Any thread.
class Threads {
 public:
  virtual ~Threads() = default;
  virtual std::unique_ptr<Condition> make_condition() = 0;
  // `body` must not throw.
  virtual std::unique_ptr<Thread> start(std::function<void()> body) = 0;
};

// The operating system's.
Threads& system_threads();

// Lets the calling thread run before those that compute (nice -10), where this process may ask for
// it: RLIMIT_NICE or CAP_SYS_NICE. For threads by whose answers others judge whether this machine
// lives; they take a fraction of a percent of a core. False if it may not; then all are equal.
bool prefer_this_thread();

}  // namespace atl
