#include "base/threads.h"

#include <sys/resource.h>
#include <unistd.h>

#include <condition_variable>
#include <thread>
#include <utility>

namespace atl {
namespace {

class SystemCondition final : public Condition {
 public:
  void notify_all() override { condition_.notify_all(); }
  void wait(std::unique_lock<std::mutex>& lock) override { condition_.wait(lock); }
  bool wait_until(std::unique_lock<std::mutex>& lock, Clock::TimePoint time) override {
    return condition_.wait_until(lock, time) == std::cv_status::no_timeout;
  }
  bool wait_for(std::unique_lock<std::mutex>& lock, std::chrono::nanoseconds time) override {
    return condition_.wait_for(lock, time) == std::cv_status::no_timeout;
  }

 private:
  std::condition_variable condition_;
};

// On Linux a priority is a thread's, and inherited: of a preferred one, too.
void run_as_the_process() {
  const int nice = getpriority(PRIO_PROCESS, static_cast<id_t>(getpid()));  // the main thread's
  if (getpriority(PRIO_PROCESS, 0) < nice) setpriority(PRIO_PROCESS, 0, nice);
}

class SystemThread final : public Thread {
 public:
  explicit SystemThread(std::function<void()> body)
      : thread_([body = std::move(body)] {
          run_as_the_process();
          body();
        }) {}
  ~SystemThread() override { join(); }
  void join() override {
    if (thread_.joinable()) thread_.join();
  }

 private:
  std::thread thread_;
};

class SystemThreads final : public Threads {
 public:
  std::unique_ptr<Condition> make_condition() override {
    return std::make_unique<SystemCondition>();
  }
  std::unique_ptr<Thread> start(std::function<void()> body) override {
    return std::make_unique<SystemThread>(std::move(body));
  }
};

}  // namespace

Threads& system_threads() {
  static SystemThreads threads;
  return threads;
}

bool prefer_this_thread() { return setpriority(PRIO_PROCESS, 0, -10) == 0; }

}  // namespace atl
