// Keeping threads on processors. Which ones is planned elsewhere (topology/thread_plan.h).
#pragma once

#include <sched.h>

#include <thread>

namespace atl {

// Keeps the thread on one processor (the kernel's number); false if the kernel refuses, as a cgroup
// without that processor makes it do.
bool pin_thread(std::thread& thread, int cpu);

// Keeps the calling thread on one processor and puts its old mask back at the end of the scope, in
// the same thread. Threads and processes that it starts meanwhile inherit the one processor, so
// start them before. No effect, and pinned() false, if the kernel refuses.
class ScopedThreadPin {
 public:
  explicit ScopedThreadPin(int cpu);
  ~ScopedThreadPin();
  ScopedThreadPin(const ScopedThreadPin&) = delete;
  ScopedThreadPin& operator=(const ScopedThreadPin&) = delete;

  bool pinned() const { return pinned_; }

 private:
  cpu_set_t saved_;
  bool pinned_ = false;
};

}  // namespace atl
