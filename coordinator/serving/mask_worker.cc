#include "coordinator/serving/mask_worker.h"

#include <sys/resource.h>

#include <utility>

namespace atl::coordinator {
namespace {

constexpr int kNice = 10;

}  // namespace

MaskWorker::~MaskWorker() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void MaskWorker::add(const std::string& client, std::shared_ptr<MaskTask> task) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.push(client, std::move(task));
    if (!thread_.joinable()) thread_ = std::thread([this] { loop(); });
  }
  changed_.notify_one();
}

void MaskWorker::loop() {
  setpriority(PRIO_PROCESS, 0, kNice);  // Linux: of this thread alone
  for (;;) {
    std::shared_ptr<MaskTask> task;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || waiting_.size() > 0; });
      if (stopping_) return;
      task = *waiting_.pop();
    }
    // Nobody else holds it if its sequence has ended.
    if (task.use_count() > 1)
      task->status = task->constraint->mask(task->tokens_left, task->allowed);
    task->done.store(true, std::memory_order_release);
    on_done_();
  }
}

}  // namespace atl::coordinator
