// Finds the dear masks of constrained sequences beside the engine's steps.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "base/turn_queue.h"
#include "constrain/token_constraint.h"

namespace atl::coordinator {

// TokenConstraint::mask() of one sequence; its constraint is lent to it. The worker's until `done`.
struct MaskTask {
  std::unique_ptr<constrain::TokenConstraint> constraint;
  int64_t tokens_left = 0;
  std::vector<uint8_t> allowed;  // [vocab_limit]
  Status status;
  std::atomic<bool> done = false;
};

// One thread, which gives way to the engine's. Clients take turns.
class MaskWorker {
 public:
  // on_done: called on the thread after each task.
  explicit MaskWorker(std::function<void()> on_done) : on_done_(std::move(on_done)) {}
  ~MaskWorker();  // after the task under way

  // Any thread.
  void add(const std::string& client, std::shared_ptr<MaskTask> task);

 private:
  void loop();

  const std::function<void()> on_done_;
  std::mutex mutex_;
  std::condition_variable changed_;
  TurnQueue<std::shared_ptr<MaskTask>> waiting_;
  bool stopping_ = false;
  std::thread thread_;  // from the first task on
};

}  // namespace atl::coordinator
