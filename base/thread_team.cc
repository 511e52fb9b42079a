#include "base/thread_team.h"

#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <exception>
#include <fstream>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/fp_env.h"
#include "base/log.h"

namespace atl {
namespace {

// About 20 us of pauses: longer than the gap between two loops of a decode step, shorter than what
// anyone notices in a sleeping process.
constexpr int kSpinPauses = 2000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  asm volatile("yield");
#endif
}

// Cores by the cgroup's CPU quota (v2 cpu.max, v1 cpu.cfs_quota_us), rounded up; none if unlimited.
std::optional<int> cgroup_cores() {
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0) {
    return std::max(1, static_cast<int>((std::stod(quota) + period - 1) / period));
  }
  std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double v1_q = 0;
  if (v1_quota >> v1_q && v1_period >> period && v1_q > 0 && period > 0) {
    return std::max(1, static_cast<int>((v1_q + period - 1) / period));
  }
  return std::nullopt;
}

}  // namespace

struct ThreadTeam::Shared {
  alignas(64) std::atomic<uint32_t> generation{0};  // counts loops; members wait for a change
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> busy{0};  // members that have not finished this loop
  int64_t num_units = 0;
  int64_t grain = 1;
  const FunctionRef<void(int64_t, int64_t, int)>* body = nullptr;
  bool stop = false;
  std::mutex failure_mutex;
  std::exception_ptr failure;  // the first one of this loop
};

ThreadTeam::ThreadTeam(int num_threads, std::vector<int> cpus)
    : num_threads_(num_threads),
      cpus_(std::move(cpus)),
      spin_(num_threads > 1 && num_threads <= usable_cores()),
      shared_(std::make_unique<Shared>()) {
  CHECK_GE(num_threads, 1);
  CHECK(cpus_.empty() || cpus_.size() == static_cast<size_t>(num_threads));
  for (int member = 1; member < num_threads; ++member) {
    threads_.emplace_back([this, member] { member_loop(member); });
  }
  if (!cpus_.empty()) pin_members();
}

void ThreadTeam::pin_members() {
  std::vector<int> refused;
  for (size_t i = 0; i < threads_.size(); ++i) {
    if (!pin_thread(threads_[i], cpus_[i + 1])) refused.push_back(cpus_[i + 1]);
  }
  if (!refused.empty()) {
    log_warn("threads run unpinned: the kernel refuses processors {}", fmt::join(refused, ","));
  }
}

std::unique_ptr<ScopedThreadPin> ThreadTeam::pin_caller() const {
  if (cpus_.empty()) return nullptr;
  auto pin = std::make_unique<ScopedThreadPin>(cpus_[0]);
  if (!pin->pinned()) log_warn("a thread runs unpinned: the kernel refuses processor {}", cpus_[0]);
  return pin;
}

ThreadTeam::~ThreadTeam() {
  shared_->stop = true;
  shared_->generation.fetch_add(1, std::memory_order_release);
  shared_->generation.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadTeam::parallel_for(int64_t num_units, int64_t grain,
                              FunctionRef<void(int64_t, int64_t, int)> body) {
  if (num_units <= 0) return;
  Shared& shared = *shared_;
  shared.num_units = num_units;
  shared.grain = std::max<int64_t>(grain, 1);
  shared.body = &body;
  shared.next.store(0, std::memory_order_relaxed);
  if (num_threads_ == 1 || num_units <= shared.grain) {
    ScopedStandardFpEnv fp_env;
    work(0);
    return throw_failure();
  }
  shared.busy.store(num_threads_ - 1, std::memory_order_relaxed);
  shared.generation.fetch_add(1, std::memory_order_release);
  shared.generation.notify_all();
  {
    ScopedStandardFpEnv fp_env;
    work(0);
  }
  for (int spins = 0; spin_ && spins < kSpinPauses; ++spins) {
    if (shared.busy.load(std::memory_order_acquire) == 0) return throw_failure();
    pause();
  }
  for (int busy; (busy = shared.busy.load(std::memory_order_acquire)) != 0;) {
    shared.busy.wait(busy, std::memory_order_acquire);
  }
  throw_failure();
}

// Of a loop that has ended; members see the next one only after this.
void ThreadTeam::throw_failure() {
  if (shared_->failure) [[unlikely]]
    std::rethrow_exception(std::exchange(shared_->failure, nullptr));
}

void ThreadTeam::member_loop(int member) {
  ScopedStandardFpEnv fp_env;
  uint32_t seen = 0;
  while (true) {
    for (int spins = 0; spin_ && spins < kSpinPauses; ++spins) {
      if (shared_->generation.load(std::memory_order_acquire) != seen) break;
      pause();
    }
    shared_->generation.wait(seen, std::memory_order_acquire);
    seen = shared_->generation.load(std::memory_order_acquire);
    if (shared_->stop) return;
    work(member);
    if (shared_->busy.fetch_sub(1, std::memory_order_acq_rel) == 1) shared_->busy.notify_one();
  }
}

void ThreadTeam::work(int member) {
  Shared& shared = *shared_;
  while (true) {
    const int64_t begin = shared.next.fetch_add(shared.grain, std::memory_order_relaxed);
    if (begin >= shared.num_units) return;
    try {
      (*shared.body)(begin, std::min(begin + shared.grain, shared.num_units), member);
    } catch (...) {
      const std::lock_guard lock(shared.failure_mutex);
      if (!shared.failure) shared.failure = std::current_exception();
      shared.next.store(shared.num_units, std::memory_order_relaxed);
    }
  }
}

int usable_cores() {
  cpu_set_t set;
  int cores = 1;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cores = std::max(1, CPU_COUNT(&set));
  const std::optional<int> quota = cgroup_cores();
  return quota ? std::min(cores, *quota) : cores;
}

}  // namespace atl
