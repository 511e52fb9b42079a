// Watches a deployment that serves: copies what the engine's thread counts, asks the nodes for what
// they count, and hands both out as one value to whoever shows them.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>

#include "base/clock.h"
#include "base/threads.h"
#include "coordinator/cluster/cluster.h"
#include "coordinator/cluster/cluster_snapshot.h"
#include "coordinator/cluster/dispatcher.h"
#include "coordinator/engine/engine.h"

namespace atl::coordinator {

struct ClusterMonitorOptions {
  std::chrono::milliseconds copy_every{200};   // at most so often, at the end of a step
  std::chrono::milliseconds ask_every{2'000};  // the nodes, on a thread of its own
  Threads* threads = &system_threads();        // borrowed
};

// after_step() and while_idle(): the engine's thread.
class ClusterMonitor final {
 public:
  // All borrowed; they outlive this. Dispatcher and cluster: both null for a model without experts,
  // which has no nodes.
  ClusterMonitor(const Engine& engine, const Dispatcher* dispatcher, Cluster* cluster,
                 const Clock& clock, ClusterMonitorOptions options = {});
  ~ClusterMonitor();

  void after_step();
  void while_idle() { copy(); }  // the engine's thread has nothing to do

  ClusterSnapshot snapshot() const;  // any thread

 private:
  void copy();
  void copy_nodes();
  void ask_nodes();

  const Engine& engine_;
  const Dispatcher* const dispatcher_;
  Cluster* const cluster_;
  const Clock& clock_;
  const ClusterMonitorOptions options_;

  Clock::TimePoint last_copy_;  // the engine's thread

  mutable std::mutex mutex_;
  const std::unique_ptr<Condition> stop_;
  bool stopping_ = false;
  ClusterSnapshot snapshot_;
  std::unique_ptr<Thread> asker_;  // null without nodes
};

}  // namespace atl::coordinator
