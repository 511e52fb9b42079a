// A fixed team of threads that runs one parallel loop at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

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
  explicit ThreadTeam(int num_threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls body(unit_begin, unit_end, member) until all units in [0, num_units) are done, each unit
  // once, in blocks of at most `grain` units taken in turn by whoever is free. Returns when all are
  // done. The body must not throw and must not call the team again.
  void parallel_for(int64_t num_units, int64_t grain,
                    FunctionRef<void(int64_t, int64_t, int)> body);

 private:
  struct Shared;
  void member_loop(int member);
  void work(int member);

  int num_threads_;
  bool spin_;
  std::unique_ptr<Shared> shared_;
  std::vector<std::thread> threads_;
};

// Cores this process may run on (its affinity mask, then the cgroup's CPU quota), at least 1.
int usable_cores();

}  // namespace atl
