#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "base/memory.h"
#include "base/units.h"
#include "storage/tiles/expert_reader.h"

namespace atl::storage {
namespace {

class ThreadedReader final : public ExpertReader {
 public:
  ThreadedReader(ReadExpert read_expert, int num_threads, size_t window_bytes)
      : read_expert_(std::move(read_expert)), window_bytes_(window_bytes) {
    // Taken here, so that threads can't fail.
    for (int i = 0; i < num_threads; ++i) windows_.emplace_back(window_bytes_);
    for (HostBuffer& window : windows_) {
      threads_.emplace_back([this, &window] { work(window.span()); });
    }
  }

  ~ThreadedReader() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  uint64_t start(size_t place, int64_t expert, std::vector<TileTarget> targets, ReadUrgency urgency,
                 Done done) override {
    const std::lock_guard lock(mutex_);
    const uint64_t ticket = ++last_ticket_;
    (urgency == ReadUrgency::kNow ? now_ : ahead_)
        .push_back({ticket, place, expert, std::move(targets), std::move(done)});
    changed_.notify_one();
    return ticket;
  }

  void raise(uint64_t ticket) override {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(ahead_.begin(), ahead_.end(),
                                    [&](const Job& job) { return job.ticket == ticket; });
    if (found == ahead_.end()) return;
    now_.push_back(std::move(*found));
    ahead_.erase(found);
  }

  void use_memory(std::span<std::byte>) override {}
  std::string describe() const override {
    return fmt::format("{} threads that read whole tensors and re-lay them", threads_.size());
  }
  uint64_t memory_bytes() const override { return windows_.size() * window_bytes_; }
  uint64_t tiles_reread() const override { return 0; }

 private:
  struct Job {
    uint64_t ticket;
    size_t place;
    int64_t expert;
    std::vector<TileTarget> targets;
    Done done;
  };

  void work(std::span<std::byte> window) {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return stopping_ || !now_.empty() || !ahead_.empty(); });
      if (stopping_) return;
      std::deque<Job>& jobs = now_.empty() ? ahead_ : now_;
      const Job job = std::move(jobs.front());
      jobs.pop_front();
      lock.unlock();
      read(job, window);
      lock.lock();
    }
  }

  void read(const Job& job, std::span<std::byte> window) {
    Status status;
    try {
      read_expert_(job.place, job.expert, job.targets, window);
    } catch (const std::exception& error) {
      status = Error{ErrorCode::kCorrupt, error.what()};
    }
    for (size_t target = 0; target < job.targets.size(); ++target) job.done(target, status);
  }

  const ReadExpert read_expert_;
  const size_t window_bytes_;
  std::vector<HostBuffer> windows_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> now_, ahead_;
  uint64_t last_ticket_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<ExpertReader> make_threaded_expert_reader(ReadExpert read_expert, int num_threads,
                                                          size_t window_bytes) {
  return std::make_unique<ThreadedReader>(std::move(read_expert), num_threads, window_bytes);
}

}  // namespace atl::storage
