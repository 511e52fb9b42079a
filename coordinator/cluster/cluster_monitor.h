// Watches a deployment that serves: copies what the engine's thread counts, asks the nodes for what
// they count, and hands both out as one value to whoever shows them.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/threads.h"
#include "coordinator/cluster/cluster.h"
#include "coordinator/cluster/cluster_snapshot.h"
#include "coordinator/cluster/dispatcher.h"
#include "coordinator/engine/decode_step.h"
#include "coordinator/engine/engine.h"

namespace atl::coordinator {

struct ClusterMonitorOptions {
  std::chrono::milliseconds copy_every{200};   // at most so often, at the end of a step
  std::chrono::milliseconds ask_every{2'000};  // the nodes, on a thread of its own
  Threads* threads = &system_threads();        // borrowed
};

// The observer's calls and after_step(): the engine's thread.
class ClusterMonitor final : public StepObserver {
 public:
  // All borrowed; they outlive this.
  ClusterMonitor(const Engine& engine, const Dispatcher& dispatcher, Cluster& cluster,
                 const Clock& clock, ClusterMonitorOptions options = {});
  ~ClusterMonitor() override;

  void on_routes(int64_t layer, std::span<const int32_t> ids,
                 std::span<const float> weights) override;
  void on_hidden(int64_t /*layer*/, std::span<const float> /*hidden*/) override {}
  void after_step();
  void while_idle() { copy(); }  // the engine's thread has nothing to do

  ClusterSnapshot snapshot() const;  // any thread

 private:
  void copy();
  void ask_nodes();

  const Engine& engine_;
  const Dispatcher& dispatcher_;
  Cluster& cluster_;
  const Clock& clock_;
  const ClusterMonitorOptions options_;

  std::vector<std::vector<uint64_t>> expert_rows_;  // the engine's thread
  Clock::TimePoint last_copy_;

  mutable std::mutex mutex_;
  const std::unique_ptr<Condition> stop_;
  bool stopping_ = false;
  ClusterSnapshot snapshot_;
  std::unique_ptr<Thread> asker_;
};

}  // namespace atl::coordinator
