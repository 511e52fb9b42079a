#include "tests/sim/coordinator.h"

#include <fmt/format.h>

#include <utility>

#include "coordinator/engine/cpu_compute.h"

namespace atl::sim {
using namespace std::chrono_literals;

namespace {

// The cores, which take simulated time.
class TimedCompute final : public coordinator::CpuCompute {
 public:
  TimedCompute(World& world, const Model& model, coordinator::KvCache& cache,
               const CoordinatorOptions& options)
      : CpuCompute(model.config(), model.weights(), cache, model.team(), options.engine.rows_max),
        world_(world),
        per_row_(options.attention_per_row) {}

  void attend_latents(int64_t layer, int64_t row_begin, int64_t n) override {
    CpuCompute::attend_latents(layer, row_begin, n);
    if (per_row_ > 0ns) world_.sleep(n * per_row_);
  }

 private:
  World& world_;
  const Duration per_row_;
};

}  // namespace

SimCoordinator::SimCoordinator(World& world, Network& network, const Model& model,
                               std::vector<std::unique_ptr<SimNode>>& nodes,
                               CoordinatorOptions options,
                               coordinator::GenerationBackend::EventSink sink)
    : world_(world),
      network_(network),
      model_(model),
      options_(std::move(options)),
      sink_(std::move(sink)),
      machine_(world.add_machine(kName)),
      threads_(world, machine_) {
  world.start(machine_, [this, &nodes] { live(nodes); });
}

void SimCoordinator::kill() {
  machine_.kill();
  scheduler_.reset();
  monitor_.reset();
  engine_.reset();
  dispatcher_.reset();
  cluster_.reset();
  source_ = nullptr;
  transport_.reset();
}

// As deployment/deployment.cc and cli/serve.cc.
void SimCoordinator::live(std::vector<std::unique_ptr<SimNode>>& nodes) {
  transport_ = std::make_unique<SimTransport>(network_, machine_);
  auto source = std::make_unique<SimSource>(world_, network_, machine_, nodes, options_.children);
  source_ = source.get();
  source_->num_nodes_known = options_.placement.num_nodes();
  coordinator::ClusterOptions cluster = options_.cluster;
  cluster.identity = model_.identity();
  cluster.limits = model_.limits();
  cluster.threads = &threads_;
  try {
    cluster_ = std::make_unique<coordinator::Cluster>(*transport_, world_, cluster,
                                                      options_.placement, std::move(source));
    coordinator::DispatcherOptions dispatch = options_.dispatcher;
    dispatch.session = cluster.session;
    dispatch.epoch = options_.placement.epoch;
    dispatch.limits = cluster.limits;
    dispatcher_ = std::make_unique<coordinator::Dispatcher>(
        *transport_, model_.team(), world_, dispatch, cluster_->links(), cluster_.get());
    if (!options_.children) cluster_->watch();
    while (!cluster_->load_state().ready) world_.sleep(20ms);
    if (options_.children) cluster_->watch();
  } catch (const LoadError& error) {
    const std::string why = fmt::format("the coordinator did not start: {}", error.what());
    return on_start_failed ? on_start_failed(why) : world_.fail(why);
  }
  cluster_->begin();
  engine_ = std::make_unique<coordinator::Engine>(
      model_.config(), model_.weights(), dispatcher_.get(), model_.team(), world_, options_.engine,
      [this](coordinator::KvCache& cache) {
        return std::make_unique<TimedCompute>(world_, model_, cache, options_);
      });
  coordinator::ClusterMonitorOptions monitor;
  monitor.threads = &threads_;
  monitor_ = std::make_unique<coordinator::ClusterMonitor>(*engine_, dispatcher_.get(),
                                                           cluster_.get(), world_, monitor);
  coordinator::SchedulerOptions settings = options_.scheduler;
  settings.threads = &threads_;
  settings.vocab_limit = static_cast<int32_t>(model_.config().vocab_size);
  settings.after_step = [this] {
    monitor_->after_step();
    if (look) look();
  };
  settings.while_idle = [this] {
    dispatcher_->poll();
    monitor_->while_idle();
    if (look) look();
  };
  scheduler_ =
      std::make_unique<coordinator::Scheduler>(*engine_, model_.team(), world_, settings, sink_);
  world_.trace([] { return "the coordinator serves"; });
  scheduler_->run();
  monitor_.reset();
  cluster_->close(options_.children ? coordinator::Cluster::Nodes::kStop
                                    : coordinator::Cluster::Nodes::kKeep);
  has_ended_ = true;
}

}  // namespace atl::sim
