#include "coordinator/cluster/cluster_monitor.h"

#include <utility>

#include "base/check.h"

namespace atl::coordinator {

ClusterMonitor::ClusterMonitor(const Engine& engine, const Dispatcher* dispatcher, Cluster* cluster,
                               const Clock& clock, ClusterMonitorOptions options)
    : engine_(engine),
      dispatcher_(dispatcher),
      cluster_(cluster),
      clock_(clock),
      options_(options),
      stop_(options.threads->make_condition()) {
  CHECK_EQ(dispatcher == nullptr, cluster == nullptr);
  copy();
  if (cluster_) asker_ = options_.threads->start([this] { ask_nodes(); });
}

ClusterMonitor::~ClusterMonitor() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_->notify_all();
  if (asker_) asker_->join();
}

void ClusterMonitor::after_step() {
  if (clock_.now() - last_copy_ >= options_.copy_every) copy();
}

ClusterSnapshot ClusterMonitor::snapshot() const {
  ClusterSnapshot snapshot;
  {
    const std::lock_guard lock(mutex_);
    snapshot = snapshot_;
  }
  if (!cluster_) return snapshot;
  const std::vector<Cluster::NodeStatus> status = cluster_->status();
  snapshot.nodes.resize(status.size());  // the dispatcher hears of new ones later
  for (size_t n = 0; n < snapshot.nodes.size(); ++n) {
    ClusterSnapshot::Node& node = snapshot.nodes[n];
    node.name = status[n].name;
    node.alive =
        status[n].state == Member::State::kReady || status[n].state == Member::State::kSuspect;
    node.state = node.alive && status[n].is_draining ? "draining" : to_string(status[n].state);
    node.lost_because = status[n].lost_because;
    node.losses = status[n].losses;
    node.restarts = status[n].restarts;
  }
  for (size_t n = status.size(); n-- > 0;) {
    if (status[n].is_removed) snapshot.nodes.erase(snapshot.nodes.begin() + static_cast<long>(n));
  }
  return snapshot;
}

// What the engine's thread counts.
void ClusterMonitor::copy() {
  last_copy_ = clock_.now();
  const std::lock_guard lock(mutex_);
  snapshot_.expert_rows = engine_.expert_load().rows_of_experts();
  snapshot_.times = engine_.times();
  snapshot_.hints = engine_.hint_stats();
  if (dispatcher_) copy_nodes();
}

void ClusterMonitor::copy_nodes() {
  snapshot_.epoch = dispatcher_->placement().epoch;
  snapshot_.nodes.resize(dispatcher_->nodes().size());
  for (size_t n = 0; n < snapshot_.nodes.size(); ++n) {
    ClusterSnapshot::Node& node = snapshot_.nodes[n];
    node.name = dispatcher_->nodes()[n].name;
    node.num_tiles = dispatcher_->placement().num_tiles(n);
    node.num_standby = dispatcher_->placement().num_standby(n);
    node.traffic = dispatcher_->traffic()[n];
  }
}

// A node that hangs holds up this thread only.
void ClusterMonitor::ask_nodes() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    lock.unlock();
    std::vector<Cluster::NamedStats> all = cluster_->stats();
    lock.lock();
    for (Cluster::NamedStats& told : all) {
      for (ClusterSnapshot::Node& node : snapshot_.nodes) {
        if (node.name != told.name) continue;
        node.num_threads = told.num_threads;
        node.stats = std::move(told.stats);
        node.stats_known = true;
        break;
      }
    }
    stop_->wait_until(lock, clock_.now() + options_.ask_every, [this] { return stopping_; });
  }
}

}  // namespace atl::coordinator
