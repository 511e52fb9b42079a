// A fixed team of threads that runs one parallel loop at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/affinity.h"

namespace atl {

// A borrowed callable: no allocation, valid only while the callable lives.
template <typename Signature>
class FunctionRef;
template <typename R, typename... Args>
class FunctionRef<R(Args...)> {
 public:
  template <typename F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
      FunctionRef(F&& f)  // NOLINT(implicit)
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}
  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

// The calling thread is member 0 and works along; num_threads - 1 more are started. One loop at a
// time, from one caller thread at a time. Every member holds the standard floating-point
// environment (base/fp_env.h). Waiting members spin only while every member can have a core of its
// own, and then only for a bounded time; otherwise they sleep.
class ThreadTeam {
 public:
  //   cpus  [num_threads] the processor (the kernel's number) that each member is kept on; empty:
  //         wherever the kernel puts them. A member that the kernel doesn't let there runs
  //         anywhere, with one log line. Member 0 is the caller, who pins itself (pin_caller()).
  explicit ThreadTeam(int num_threads, std::vector<int> cpus = {});
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int num_threads() const { return num_threads_; }
  const std::vector<int>& cpus() const { return cpus_; }

  // Keeps the calling thread on member 0's processor until the result goes (nullptr if the team is
  // not pinned). For the thread that runs the loops, once it has started all other threads.
  std::unique_ptr<ScopedThreadPin> pin_caller() const;

  // Calls body(unit_begin, unit_end, member) until all units in [0, num_units) are done, each unit
  // once, in blocks of at most `grain` units taken in turn by whoever is free. Returns when all are
  // done. The body must not call the team again. If it throws, units that nobody has begun are left
  // out, and when all members have stopped the first exception is thrown again from here.
  void parallel_for(int64_t num_units, int64_t grain,
                    FunctionRef<void(int64_t, int64_t, int)> body);

 private:
  struct Shared;
  void pin_members();
  void member_loop(int member);
  void work(int member);
  void throw_failure();

  int num_threads_;
  const std::vector<int> cpus_;
  bool spin_;
  std::unique_ptr<Shared> shared_;
  std::vector<std::thread> threads_;
};

// Cores this process may run on (its affinity mask, then the cgroup's CPU quota), at least 1.
int usable_cores();

}  // namespace atl
