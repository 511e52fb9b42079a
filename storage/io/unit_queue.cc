#include "storage/io/unit_queue.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/log.h"

namespace atl::storage {
namespace {

class UnitQueue {
 public:
  explicit UnitQueue(int64_t num_units) : num_units_(num_units) {}

  void work_off(const std::function<UnitWorker()>& make_worker) {
    try {
      const UnitWorker worker = make_worker();
      while (!failed_.load(std::memory_order_relaxed)) {
        const int64_t unit = next_.fetch_add(1, std::memory_order_relaxed);
        if (unit >= num_units_) return;
        worker(unit);
      }
    } catch (...) {
      keep(std::current_exception());
    }
  }
  void rethrow() {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void keep(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    failed_ = true;
    if (!error_) error_ = std::move(error);
  }

  const int64_t num_units_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace

void run_units(int64_t num_units, int num_threads, const std::function<UnitWorker()>& make_worker) {
  if (num_units == 0) return;
  UnitQueue queue(num_units);
  std::vector<std::thread> threads;
  const int64_t wanted = std::min<int64_t>(num_threads, num_units) - 1;
  try {
    for (int64_t i = 0; i < wanted; ++i) {
      threads.emplace_back([&] { queue.work_off(make_worker); });
    }
  } catch (const std::system_error& error) {
    // The system refuses more threads: those that are there do the work.
    log_warn("working with {} threads instead of {}: {}", threads.size() + 1, wanted + 1,
             error.what());
  }
  queue.work_off(make_worker);
  for (std::thread& thread : threads) thread.join();
  queue.rethrow();
}

}  // namespace atl::storage
