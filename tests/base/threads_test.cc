#include "base/threads.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

namespace atl {
namespace {

TEST(Threads, a_thread_that_waits_is_notified) {
  Threads& threads = system_threads();
  const auto changed = threads.make_condition();
  std::mutex mutex;
  bool asked = false, answered = false;
  const auto thread = threads.start([&] {
    std::unique_lock lock(mutex);
    changed->wait(lock, [&] { return asked; });
    answered = true;
    changed->notify_all();
  });
  std::unique_lock lock(mutex);
  asked = true;
  changed->notify_all();
  changed->wait(lock, [&] { return answered; });
  lock.unlock();
  thread->join();
  thread->join();  // nothing
  EXPECT_TRUE(answered);
}

TEST(Threads, waiting_ends_when_the_time_has_come) {
  const auto changed = system_threads().make_condition();
  std::mutex mutex;
  std::unique_lock lock(mutex);
  const auto start = SteadyClock().now();
  const auto deadline = start + std::chrono::milliseconds(2);
  EXPECT_FALSE(changed->wait_until(lock, deadline, [] { return false; }));
  EXPECT_GE(SteadyClock().now(), deadline);
  EXPECT_TRUE(changed->wait_until(lock, deadline, [] { return true; }));
  while (changed->wait_for(lock, std::chrono::milliseconds(1))) continue;
  EXPECT_TRUE(lock.owns_lock());
}

TEST(Threads, the_end_of_a_thread_joins_it) {
  bool ran = false;
  system_threads().start([&] { ran = true; }).reset();
  EXPECT_TRUE(ran);
}

TEST(Threads, a_preferred_thread_prefers_nobody_else) {
  const auto nice = [] { return getpriority(PRIO_PROCESS, 0); };
  const int usual = nice();
  int preferred = 0, started = 0;
  bool may = false;
  system_threads()
      .start([&] {
        may = prefer_this_thread();
        preferred = nice();
        system_threads().start([&] { started = nice(); })->join();
      })
      ->join();
  if (!may) GTEST_SKIP() << "this process may not raise a priority";
  EXPECT_LT(preferred, usual);
  EXPECT_EQ(started, usual);
  EXPECT_EQ(nice(), usual);
}

}  // namespace
}  // namespace atl
