// Puts the parts of a coordinator together: model, expert nodes, engine. `atoll node` wires its
// own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/affinity.h"
#include "base/clock.h"
#include "base/progress.h"
#include "base/thread_team.h"
#include "config/cluster_config.h"
#include "coordinator/cluster/cluster.h"
#include "coordinator/cluster/dialled_nodes.h"
#include "coordinator/cluster/dispatcher.h"
#include "coordinator/cluster/node_source.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/weights.h"
#include "deployment/memory_check.h"
#include "deployment/memory_options.h"
#include "deployment/model_parts.h"
#include "expert_node/serve.h"
#include "kernels/cuda/device.h"
#include "model/numerics_profile.h"
#include "model/open.h"
#include "storage/tiles/tile_store.h"
#include "topology/placement.h"
#include "topology/thread_plan.h"
#include "transport/data/transport.h"

namespace atl::deployment {

// Whether the model's next-token layer (MTP) is loaded, for Engine::draft(): not; if all of it is
// there; or the start fails without.
enum class NextTokenLayer : uint8_t { kOff, kIfThere, kRequired };

// What all commands that run a model are told: `run`, `serve`, `eval`, `bench decode|prefill`.
struct DeploymentOptions {
  std::optional<config::ClusterConfig> cluster;  // what the cluster file says, if there is one
  // Reads it again, with what is stronger than it. LoadError, one line.
  std::function<config::Settings()> read_cluster_file;
  double min_coverage = 1;  // share of the tiles whose owners have to be there, of a file's nodes
  std::filesystem::path model_dir;
  int nodes = 0;                                   // 0: the expert node lives in this process
  std::vector<int> tile_counts;                    // of each node; empty: equal shares
  std::vector<std::vector<int>> scattered_tiles;   // of each node; instead of tile_counts
  int redundancy = 1;                              // nodes that keep each tile in RAM
  config::Choice hedging = config::Choice::kAuto;  // as the cluster file's keys
  config::Choice balance = config::Choice::kAuto;
  transport::TransportKind transport = transport::TransportKind::kAuto;
  model::NumericsProfile numerics;
  int threads = 0;                                   // of the coordinator; 0: all usable cores
  topology::PinMode pin = topology::PinMode::kAuto;  // of the coordinator and child nodes
  std::string device = "auto";                       // of the coordinator: cpu, cuda:N, or auto
  int64_t rows_max = 512;                            // of a step, all sequences together
  int64_t cache_tokens = 0;                          // room in the KV cache
  MemoryOptions memory;                              // of each node
  coordinator::Prefetch prefetch = coordinator::Prefetch::kOff;
  coordinator::Halves halves = coordinator::Halves::kAuto;  // never where experts are computed here
  NextTokenLayer next_token_layer = NextTokenLayer::kOff;
  ProgressFactory progress;                     // of loading; empty: nobody looks
  bool force = false;                           // load without asking whether there is memory
  CacheOption cache_option;                     // how the user gives cache_tokens
  std::string node_program = "/proc/self/exe";  // what child nodes are started with
};

// The most that --nodes takes, whatever the model.
inline constexpr int kNodesMax = 256;
// LoadError unless `nodes` equal nodes each get one of an expert's tiles; 0 is this process alone.
void require_nodes(int nodes, int num_tiles);

// LoadError if something is asked for that only routed experts have, of a model without any.
void require_no_expert_options(const DeploymentOptions& options, const model::ModelConfig& config);

// A model ready to run, with its nodes, once it is known to fit into memory. Nodes may go on
// loading experts in the background; what is asked for meanwhile and not there yet is read at once.
// The destructor ends child nodes.
class Deployment {
 public:
  // LoadError says in one line what prevents the start.
  explicit Deployment(const DeploymentOptions& options);
  ~Deployment();

  // Returns when every expert that the nodes are to keep in RAM is there, drawing the progress:
  // before measurements. Gives up with a log line if nothing is read for a minute. LoadError if a
  // node failed.
  void wait_until_warm();

  coordinator::Engine& engine() { return *engine_; }
  const model::ModelConfig& config() const { return model_->config; }
  const Clock& clock() const { return clock_; }
  // For commands that serve (Scheduler, ClusterMonitor).
  ThreadTeam& team() { return team_; }
  // What steps are computed on: "cpu", or "cuda:0 (NVIDIA H200)".
  std::string device() const;
  // Of weights and numerics: equal ones give equal tokens.
  std::string fingerprint() const;
  std::string checkpoint_fingerprint() const { return model_->fingerprint(); }
  std::string short_fingerprint() const;  // 12 hexadecimal digits of it
  // Null for a model without experts: it runs on the coordinator alone.
  coordinator::Cluster* cluster() { return cluster_.get(); }
  const coordinator::Dispatcher* dispatcher() const { return dispatcher_.get(); }
  // The engine's thread: hears of nodes that went or came while nothing is computed.
  void poll_nodes() {
    if (dispatcher_) dispatcher_->poll();
  }
  // Reads the cluster file again and takes its nodes. Any thread, one at a time. LoadError: it is
  // wrong, and nothing changes; or there is none.
  struct Reload {
    std::vector<std::string> added, removed, moved;
    std::vector<std::string> needs_restart;  // keys with another value, which was not taken
  };
  Reload reload();
  // Before the first step; as Dispatcher::set_trace().
  void trace_shares(TraceRing* ring, uint8_t kind) {
    if (dispatcher_) dispatcher_->set_trace(ring, kind);
  }
  // What each node did so far, with the traffic seen from here.
  struct NodeReport {
    std::string name;
    uint32_t num_threads = 0;
    int num_tiles = 0;
    transport::NodeStats stats;
    coordinator::NodeTraffic traffic;
  };
  std::vector<NodeReport> node_reports();
  std::vector<pid_t> child_pids() const {
    return cluster_ ? cluster_->source().pids() : std::vector<pid_t>{};
  }
  double load_seconds() const { return load_seconds_; }  // until all were ready
  // Where the coordinator's threads run (and the experts' with nodes == 0).
  const topology::TeamPlan& threads() const { return threads_.coordinator; }
  // For the thread that calls the engine, once it has started all other threads: it stays on its
  // processor until the result goes. nullptr if threads are not pinned.
  std::unique_ptr<ScopedThreadPin> pin_engine_thread() const { return team_.pin_caller(); }

 private:
  void check_memory(const topology::Placement& placement) const;
  MemoryRequest memory_request() const;
  std::vector<int> rooms(const std::vector<std::vector<int>>& tiles,
                         const config::ClusterConfig* config) const;
  void add_standbys(topology::Placement* placement, const config::ClusterConfig* config) const;
  std::unique_ptr<coordinator::NodeSource> local_node();
  std::unique_ptr<coordinator::NodeSource> child_nodes();
  std::unique_ptr<coordinator::NodeSource> dialled_nodes();
  bool dials_nodes() const;
  void start_nodes(const topology::Placement& placement);
  void finish_nodes();
  void join_cluster(const topology::Placement& placement,
                    std::unique_ptr<coordinator::NodeSource> nodes);
  void load_weights();
  void open_device();
  void settle_next_token_layer() const;
  void check_device_memory();
  std::unique_ptr<coordinator::Compute> make_compute(const coordinator::KvCache& cache);
  void wait_for_nodes(const char* label, bool coordinator::Cluster::LoadState::*done);

  const DeploymentOptions options_;
  SteadyClock clock_;
  std::unique_ptr<model::OpenedModel> model_;
  const model::NumericsProfile numerics_;  // settled
  const topology::SharedPlan threads_;
  ThreadTeam team_;
  std::unique_ptr<transport::Transport> transport_;  // the coordinator's end

  // nodes == 0:
  std::unique_ptr<transport::Transport> local_end_;
  std::unique_ptr<storage::TileStore> local_tiles_;
  std::unique_ptr<expert_node::ExpertNode> local_node_;

  std::optional<config::Settings> settings_;             // of the cluster file when this began
  coordinator::DialledNodes* dialled_ = nullptr;         // cluster_'s source, if it dials
  std::unique_ptr<coordinator::Cluster> cluster_;        // null without experts
  std::unique_ptr<coordinator::Dispatcher> dispatcher_;  // likewise
  std::optional<coordinator::Weights> weights_;
  std::unique_ptr<kernels::cuda::Device> device_;  // of the engine's steps; nullptr: this CPU
  std::unique_ptr<coordinator::Engine> engine_;
  double load_seconds_ = 0;
};

}  // namespace atl::deployment
