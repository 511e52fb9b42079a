// The coordinator of a world: the parts that `atoll serve` puts together, on a machine of its own.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "coordinator/cluster/cluster.h"
#include "coordinator/cluster/cluster_monitor.h"
#include "coordinator/cluster/dispatcher.h"
#include "coordinator/engine/engine.h"
#include "coordinator/serving/scheduler.h"
#include "tests/sim/control.h"
#include "tests/sim/model.h"
#include "tests/sim/network.h"
#include "tests/sim/world.h"

namespace atl::sim {

struct CoordinatorOptions {
  coordinator::ClusterOptions cluster;
  coordinator::DispatcherOptions dispatcher;
  coordinator::EngineOptions engine;
  coordinator::SchedulerOptions scheduler;
  bool children = false;
  Duration attention_per_row{};  // that the coordinator computes, of a layer
  topology::Placement placement;
};

class SimCoordinator {
 public:
  SimCoordinator(World& world, Network& network, const Model& model,
                 std::vector<std::unique_ptr<SimNode>>& nodes, CoordinatorOptions options,
                 coordinator::GenerationBackend::EventSink sink);

  static constexpr const char* kName = "coordinator";
  Machine& machine() { return machine_; }
  // Requests are taken from here on.
  bool is_serving() const { return scheduler_ != nullptr; }
  bool has_ended() const { return has_ended_; }
  coordinator::Scheduler& scheduler() { return *scheduler_; }
  coordinator::Cluster& cluster() { return *cluster_; }
  const coordinator::Dispatcher& dispatcher() const { return *dispatcher_; }
  const coordinator::ClusterMonitor& monitor() const { return *monitor_; }
  uint64_t halved_steps() const { return engine_->times().halved_steps; }
  SimSource& source() { return *source_; }
  const SimTransport& transport() const { return *transport_; }
  // What ended its start, on its own thread; by default the world fails.
  std::function<void(const std::string&)> on_start_failed;
  // After each step and while it is idle, on the engine's thread.
  std::function<void()> look;

  // Runs `work` on a thread of this machine, as an admin's call.
  void start(std::function<void()> work) { world_.start(machine_, std::move(work)); }
  bool is_running() const { return !machine_.is_dead(); }
  // SIGKILL: its threads end where they are, its connections are closed by the system.
  void kill();
  // The engine's thread ends the session and everything else; then has_ended().
  void stop() { scheduler_->stop(); }

 private:
  void live(std::vector<std::unique_ptr<SimNode>>& nodes);

  World& world_;
  Network& network_;
  const Model& model_;
  const CoordinatorOptions options_;
  const coordinator::GenerationBackend::EventSink sink_;
  Machine& machine_;
  SimThreads threads_;
  std::unique_ptr<SimTransport> transport_;
  SimSource* source_ = nullptr;
  std::unique_ptr<coordinator::Cluster> cluster_;
  std::unique_ptr<coordinator::Dispatcher> dispatcher_;
  std::unique_ptr<coordinator::Engine> engine_;
  std::unique_ptr<coordinator::ClusterMonitor> monitor_;
  std::unique_ptr<coordinator::Scheduler> scheduler_;
  bool has_ended_ = false;
};

}  // namespace atl::sim
