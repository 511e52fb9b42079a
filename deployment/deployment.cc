#include "deployment/deployment.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <random>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "base/units.h"
#include "coordinator/cluster/child_nodes.h"
#include "coordinator/cluster/local_node.h"
#include "coordinator/engine/cuda_compute.h"
#include "deployment/cluster_transport.h"
#include "deployment/device_memory.h"
#include "deployment/node_arguments.h"
#include "deployment/numerics.h"
#include "model/conversion_loss.h"
#include "model/gguf_source.h"
#include "topology/machine.h"

namespace atl::deployment {
namespace {

constexpr auto kLoadPollInterval = std::chrono::milliseconds(20);
constexpr auto kBarAfter = std::chrono::milliseconds(500);  // a shorter wait is not worth a line
constexpr auto kWarmPatience = std::chrono::minutes(1);
// Where no cluster file says them.
constexpr double kHedgeAfter = 4;
constexpr auto kOverdueAfter = std::chrono::milliseconds(50);
constexpr auto kMeasureEvery = std::chrono::seconds(2);
// Who is waited for is said so long after the start, and then so often.
constexpr auto kFirstWord = std::chrono::seconds(1), kWordEvery = std::chrono::seconds(10);

SessionId random_session() {
  std::random_device random;
  return SessionId{(static_cast<uint64_t>(random()) << 32) | random()};
}

topology::Placement make_placement(const DeploymentOptions& options, int num_tiles) {
  if (!options.scattered_tiles.empty()) {
    return topology::placement_from_tiles(num_tiles, options.scattered_tiles);
  }
  if (options.cluster && options.nodes == 0 && !options.cluster->nodes.empty()) {
    return topology::placement_from_counts(num_tiles,
                                           config::tiles_of_nodes(*options.cluster, num_tiles));
  }
  const int nodes = std::max(1, options.nodes);
  if (options.tile_counts.empty()) {
    require_nodes(options.nodes, num_tiles);
    return topology::equal_placement(num_tiles, nodes);
  }
  if (static_cast<int>(options.tile_counts.size()) != nodes) {
    throw LoadError(fmt::format("--tiles names {} nodes, --nodes {}: give one count per node",
                                options.tile_counts.size(), options.nodes));
  }
  return topology::placement_from_counts(num_tiles, options.tile_counts);
}

std::vector<Progress::Part> parts_of(const coordinator::Cluster::LoadState& state) {
  std::vector<Progress::Part> parts;
  for (const coordinator::Cluster::NodeLoad& node : state.nodes) {
    parts.push_back({node.name, node.bytes_loaded, node.bytes_total});
  }
  return parts;
}

topology::SharedPlan plan_shared_threads(const DeploymentOptions& options) {
  topology::TeamRequest request;
  request.num_threads = options.threads;
  request.pin = options.pin;
  topology::SharedPlan plan =
      topology::plan_shared(topology::this_machine(), options.nodes, request);
  log_debug("coordinator: {}", topology::describe(plan.coordinator));
  for (size_t n = 0; n < plan.nodes.size(); ++n) {
    log_debug("node {}: {}", coordinator::ChildNodes::name_of(static_cast<int>(n)),
              topology::describe(plan.nodes[n]));
  }
  return plan;
}

model::MtpLayers mtp_layers(const DeploymentOptions& options) {
  return options.next_token_layer == NextTokenLayer::kOff ? model::MtpLayers::kLeaveOut
                                                          : model::MtpLayers::kFirst;
}

}  // namespace

void require_nodes(int nodes, int num_tiles) {
  if (nodes <= num_tiles) return;
  throw LoadError(
      fmt::format("--nodes {}: expected 0 to {}: an expert of this model has {} tiles, and a node "
                  "without one has nothing to do; --tiles with zeros starts spare nodes",
                  nodes, num_tiles, num_tiles));
}

void require_no_expert_options(const DeploymentOptions& options, const model::ModelConfig& config) {
  const auto refuse = [&](std::string_view option, std::string_view instead) {
    throw LoadError(
        fmt::format("{}: a {} model has no routed experts{}", option, config.model_type, instead));
  };
  constexpr std::string_view kAlone = " that nodes could hold: it runs on the coordinator alone";
  if (options.nodes > 0) refuse("--nodes", kAlone);
  if (!options.tile_counts.empty()) refuse("--tiles", kAlone);
  if (options.redundancy > 1) refuse("--redundancy", kAlone);
  if (options.cluster && !options.cluster->nodes.empty()) {
    refuse(options.cluster->file.string() + ": nodes", kAlone);
  }
  if (options.memory.ram_budget) refuse("--ram-budget", ": all its weights stay in RAM");
  if (options.prefetch != coordinator::Prefetch::kOff) refuse("--prefetch", "");
  if (options.numerics.format) refuse("--format", ": --dense-format says how weights are held");
}

Deployment::Deployment(const DeploymentOptions& options)
    : options_(options),
      model_(model::open(options.model_dir, options.memory.stripes, mtp_layers(options))),
      numerics_(model_->settle(options.numerics)),
      threads_(plan_shared_threads(options)),
      team_(threads_.coordinator.num_threads, threads_.coordinator.cpus) {
  const auto start = clock_.now();
  if (const auto* gguf = dynamic_cast<const model::GgufSource*>(&model_->checkpoint)) {
    for (const std::string& note : model::conversion_notes(*gguf, model_->config, numerics_)) {
      log_info("{}: {}", gguf->file().string(), note);
    }
  }
  topology::Placement placement;  // without experts: of no node
  if (model_->config.has_experts()) {
    placement = make_placement(options_, kernels::num_tiles(model_->config.moe_intermediate_size));
    add_standbys(&placement, options_.cluster ? &*options_.cluster : nullptr);
  } else {
    require_no_expert_options(options_, model_->config);
  }
  settle_next_token_layer();
  open_device();
  if (!options_.force) {
    check_device_memory();
    check_memory(placement);
  }
  if (model_->config.has_experts()) start_nodes(placement);
  load_weights();
  if (model_->config.has_experts()) finish_nodes();
  coordinator::EngineOptions engine_options;
  engine_options.cache_type = numerics_.cache;
  engine_options.rows_max = options_.rows_max;
  engine_options.prefetch = options_.prefetch;
  const bool has_others = options_.nodes > 0 || dials_nodes();
  const bool wants_halves = has_others || options_.halves == coordinator::Halves::kOn;
  engine_options.halves = wants_halves ? options_.halves : coordinator::Halves::kOff;
  engine_options.cache_blocks = coordinator::KvCache::blocks_for(options_.cache_tokens) + 1;
  engine_ = std::make_unique<coordinator::Engine>(
      model_->config, *weights_, dispatcher_.get(), team_, clock_, engine_options,
      [this](coordinator::KvCache& cache) { return make_compute(cache); });
  load_seconds_ = seconds_between(start, clock_.now());
}

void Deployment::start_nodes(const topology::Placement& placement) {
  join_cluster(placement, dials_nodes()         ? dialled_nodes()
                          : options_.nodes == 0 ? local_node()
                                                : child_nodes());
  if (dials_nodes()) cluster_->watch();
}

void Deployment::finish_nodes() {
  wait_for_nodes("loading experts", &coordinator::Cluster::LoadState::ready);
  if (!dials_nodes()) cluster_->watch();
  cluster_->begin();
}

Deployment::~Deployment() {
  using coordinator::Cluster;
  if (cluster_) cluster_->close(dials_nodes() ? Cluster::Nodes::kKeep : Cluster::Nodes::kStop);
  if (local_tiles_) local_tiles_->save_usage();
}

// Before anything is loaded. With "auto" the CPU is what is left; a device that was named must do.
void Deployment::open_device() {
  if (options_.device == "cpu") return;
  const bool automatic = options_.device == "auto";
  auto device = kernels::cuda::open_device(automatic ? 0 : std::stoi(options_.device.substr(5)));
  if (device) {
    device_ = std::move(*device);
  } else if (automatic) {
    log_debug("the coordinator computes on the CPU: {}", device.error().message);
  } else {
    throw LoadError(fmt::format("--device: {}; --device cpu computes on this machine's cores",
                                device.error().message));
  }
}

// Where it is asked for and isn't there, the start fails or a line says so.
void Deployment::settle_next_token_layer() const {
  if (options_.next_token_layer == NextTokenLayer::kOff) return;
  const std::string& why = model_->why_no_mtp;
  if (why.empty()) return;
  if (options_.next_token_layer == NextTokenLayer::kRequired) {
    throw LoadError(fmt::format("{}: --draft mtp: {}; expected --draft lookup, auto or off",
                                options_.model_dir.string(), why));
  }
  log_info("no drafts by the next-token layer: {}", why);
}

// A named device must have the memory; with "auto" the CPU computes, and a line says why.
void Deployment::check_device_memory() {
  if (!device_ || device_->info().memory_total_bytes == 0) return;  // or it doesn't tell
  const auto shortage = device_shortage(*model_, memory_request(), options_.cache_option,
                                        device_->info().memory_free_bytes);
  if (!shortage) return;
  if (options_.device != "auto") {
    throw LoadError(fmt::format("--device {}: {}", options_.device, *shortage));
  }
  log_warn("the coordinator computes on the CPU: {}", *shortage);
  device_.reset();
}

// nullptr: on the CPU, because of a line that says why or because there is no device.
std::unique_ptr<coordinator::Compute> Deployment::make_compute(const coordinator::KvCache& cache) {
  if (!device_) return nullptr;
  auto compute =
      coordinator::CudaCompute::make(model_->config, *weights_, cache, *device_, options_.rows_max);
  if (compute) {
    log_info("the coordinator computes on {}", this->device());
    return std::move(*compute);
  }
  if (options_.device != "auto") {
    throw LoadError(fmt::format("--device {}: {}", options_.device, compute.error().message));
  }
  log_warn("the coordinator computes on the CPU: {}", compute.error().message);
  device_.reset();
  return nullptr;
}

std::string Deployment::device() const {
  if (!device_) return "cpu";
  return fmt::format("{} ({})", options_.device == "auto" ? "cuda:0" : options_.device,
                     device_->info().name);
}

// All processes of this machine together, before any of them is started.
void Deployment::check_memory(const topology::Placement& placement) const {
  MemoryRequest request = memory_request();
  request.placement = placement;
  if (dials_nodes()) request.placement = {};  // each of them looks at its own memory
  const auto shortage =
      memory_shortage(*model_, request, options_.cache_option, topology::memory_bounds());
  if (shortage) throw LoadError(*shortage + "; --force loads all the same");
}

// Without a placement.
MemoryRequest Deployment::memory_request() const {
  MemoryRequest request;
  request.numerics = numerics_;
  request.local_node = options_.nodes == 0 && !dials_nodes();
  request.coordinator_threads = team_.num_threads();
  request.node_threads = team_.num_threads();
  for (const topology::TeamPlan& node : threads_.nodes) {
    request.node_threads = std::max(request.node_threads, node.num_threads);
  }
  request.rows_max = options_.rows_max;
  request.cache_tokens = options_.cache_tokens;
  request.prefetch = options_.prefetch;
  request.memory = options_.memory;
  return request;
}

// The coordinator's end of the transport, and the node at the other.
std::unique_ptr<coordinator::NodeSource> Deployment::local_node() {
  transport::InProcessPair pair = transport::make_in_process_pair();
  transport_ = std::move(pair.near_end);
  local_end_ = std::move(pair.far_end);
  expert_node::NodeOptions node_options;
  node_options.name = "local";
  node_options.identity = identity_of(*model_, numerics_);
  node_options.row_type = wire_row_type(numerics_.wire);
  node_options.rows_max = static_cast<uint32_t>(options_.rows_max);
  local_tiles_ = open_tiles(
      *model_, numerics_,
      {options_.memory,
       expert_node::node_buffer_bytes(node_options, model_->catalog, team_.num_threads()),
       team_.num_threads(),
       {}});
  local_node_ =
      std::make_unique<expert_node::ExpertNode>(node_options, team_, *local_tiles_, *local_end_);
  transport::set_in_process_pump(*transport_, [this] { local_node_->serve_some(); });
  return std::make_unique<coordinator::LocalNode>("local", *local_node_);
}

std::unique_ptr<coordinator::NodeSource> Deployment::child_nodes() {
  transport::UcxOptions ucx;
  // Processes of one machine need no port that others could reach.
  ucx.kind = options_.transport == transport::TransportKind::kAuto ? transport::TransportKind::kShm
                                                                   : options_.transport;
  ucx.spin = threads_.cores_suffice;  // a waiting thread may only if all have a core of their own
  transport_ = transport::make_ucx_transport(ucx);

  coordinator::ChildNodesOptions children;
  children.program = options_.node_program;
  for (size_t n = 0; n < threads_.nodes.size(); ++n) {
    NodeArguments node;
    node.model_dir = options_.model_dir;
    node.name = coordinator::ChildNodes::name_of(static_cast<int>(n));
    node.threads = threads_.nodes[n];
    node.spin = ucx.spin;
    node.transport = ucx.kind;
    node.numerics = numerics_;
    node.memory = options_.memory.of_node(node.name);
    node.rows_max = options_.rows_max;
    node.mtp = model_->has_mtp;
    children.arguments.push_back(arguments_of_node(node));
  }
  return std::make_unique<coordinator::ChildNodes>(std::move(children));
}

bool Deployment::dials_nodes() const {
  return options_.cluster && options_.nodes == 0 && !options_.cluster->nodes.empty();
}

std::unique_ptr<coordinator::NodeSource> Deployment::dialled_nodes() {
  const config::ClusterConfig& config = *options_.cluster;
  const transport::ControlSecurity security = cluster_security(config, nullptr);
  // Nodes of other machines leave this one its cores; with some of this one nobody knows.
  transport_ = make_cluster_transport(config, nullptr, security, 0, false);
  std::vector<coordinator::DialledNode> nodes;
  for (const config::NodeConfig& node : config.nodes) {
    nodes.push_back({node.name, node.control.text()});
  }
  auto source = std::make_unique<coordinator::DialledNodes>(std::move(nodes), security);
  dialled_ = source.get();
  settings_ = options_.read_cluster_file();
  return source;
}

void Deployment::join_cluster(const topology::Placement& placement,
                              std::unique_ptr<coordinator::NodeSource> nodes) {
  const model::ModelConfig& config = model_->config;
  coordinator::ClusterOptions cluster;
  cluster.identity = identity_of(*model_, numerics_);
  cluster.session = random_session();
  cluster.redundancy = options_.redundancy;
  // On one machine all nodes share the cores: who is slow is so because others are fast.
  const auto is_on = [&](config::Choice choice, bool by_itself) {
    return choice == config::Choice::kOn ||
           (choice == config::Choice::kAuto && dials_nodes() && by_itself);
  };
  const bool has_counts = dials_nodes() && options_.cluster->nodes.front().tiles.has_value();
  cluster.follows_speed = is_on(options_.balance, !has_counts);
  if (options_.redundancy > 1 || cluster.follows_speed)
    cluster.room = rooms(placement.kept_by_node(), options_.cluster ? &*options_.cluster : nullptr);
  if (options_.cluster) {
    const config::TimeoutsConfig& times = options_.cluster->timeouts;
    cluster.coordinator_name = options_.cluster->coordinator.name;
    cluster.times.heartbeat = times.heartbeat;
    cluster.times.suspect_after = times.suspect;
    cluster.times.lost_after = times.lost;
    cluster.times.backoff_max = times.backoff_max;
    cluster.grace = times.grace;
    cluster.min_coverage = options_.min_coverage;
  }
  cluster.limits.rows_max = static_cast<uint32_t>(options_.rows_max);
  cluster.limits.hidden_size = static_cast<uint32_t>(config.hidden_size);
  cluster.limits.top_k = static_cast<uint32_t>(config.num_experts_per_tok);
  cluster.limits.num_layers = static_cast<uint32_t>(model_->catalog.num_layers);
  cluster.limits.n_routed_experts = static_cast<uint32_t>(config.n_routed_experts);
  cluster.limits.num_tiles =
      static_cast<uint32_t>(kernels::num_tiles(config.moe_intermediate_size));
  cluster.limits.row_type = wire_row_type(numerics_.wire);
  cluster_ = std::make_unique<coordinator::Cluster>(*transport_, clock_, cluster, placement,
                                                    std::move(nodes));
  coordinator::DispatcherOptions dispatch;
  dispatch.session = cluster.session;
  dispatch.epoch = placement.epoch;
  dispatch.limits = cluster.limits;
  if (options_.cluster) dispatch.return_patience = options_.cluster->timeouts.comeback;
  if (is_on(options_.hedging, options_.redundancy > 1)) {
    dispatch.hedge_after = options_.cluster ? options_.cluster->hedge_after : kHedgeAfter;
    dispatch.overdue_after_min =
        options_.cluster ? options_.cluster->timeouts.dispatch : kOverdueAfter;
  }
  if (cluster.follows_speed) dispatch.measure_every = kMeasureEvery;
  dispatcher_ = std::make_unique<coordinator::Dispatcher>(*transport_, team_, clock_, dispatch,
                                                          cluster_->links(), cluster_.get());
}

// The coordinator's own weights, while the nodes load their tiles.
void Deployment::load_weights() {
  const model::ModelTensors tensors = model_->tensors();
  std::unique_ptr<Progress> progress = std::make_unique<NoProgress>();
  if (options_.progress) progress = options_.progress("loading");
  progress->start(coordinator::Weights::read_bytes(tensors, numerics_.dense()));
  weights_ =
      coordinator::Weights::load(model_->config, tensors, model_->checkpoint, numerics_.dense(),
                                 team_.num_threads(), kStagingWindowBytes, *progress);
}

// Asks the nodes again and again, and draws how much of their experts they have read.
void Deployment::wait_for_nodes(const char* label, bool coordinator::Cluster::LoadState::*done) {
  std::unique_ptr<Progress> bar;
  uint64_t total = 0, shown = 0;
  const auto start = clock_.now();
  auto last_progress = start;
  auto next_word = start + kFirstWord;
  while (true) {
    dispatcher_->poll();  // sets connections up; a node in this process takes its session up
    const coordinator::Cluster::LoadState state = cluster_->load_state();
    if (options_.progress && !bar && !(state.*done) && clock_.now() - start > kBarAfter) {
      bar = options_.progress(label);
    }
    if (bar && !(state.*done) && state.bytes_total != total) {
      bar->start(total = state.bytes_total);
      shown = 0;
    }
    if (state.bytes_loaded != shown) last_progress = clock_.now();
    if (bar && (options_.nodes > 0 || dials_nodes())) bar->set_parts(parts_of(state));
    if (bar && state.bytes_loaded > shown) bar->advance(state.bytes_loaded - shown);
    shown = state.bytes_loaded;
    if (state.*done) return;
    if (dials_nodes() && !state.ready && clock_.now() >= next_word) {
      next_word = clock_.now() + kWordEvery;
      log_info("waits for expert nodes: {}", fmt::join(cluster_->missing(), ", "));
    }
    if (state.ready && clock_.now() - last_progress > kWarmPatience) {
      log_warn("{}: {} of {} read, and no more for a minute: goes on without", label,
               format_bytes(state.bytes_loaded), format_bytes(state.bytes_total));
      return;
    }
    std::this_thread::sleep_for(kLoadPollInterval);
  }
}

void Deployment::wait_until_warm() {
  if (cluster_) wait_for_nodes("warming", &coordinator::Cluster::LoadState::warm);
}

std::string Deployment::fingerprint() const {
  const transport::ModelIdentity identity = identity_of(*model_, numerics_);
  return identity.checkpoint_fingerprint + ", " + identity.profile;
}

// FNV-1a, 64 bits, of which 48 are kept: no secret, only a name.
std::string Deployment::short_fingerprint() const {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : fingerprint()) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  return fmt::format("{:012x}", hash >> 16);
}

std::vector<Deployment::NodeReport> Deployment::node_reports() {
  std::vector<NodeReport> reports;
  if (!cluster_) return reports;
  for (coordinator::Cluster::NamedStats& stats : cluster_->stats()) {
    NodeReport report;
    report.name = stats.name;
    report.num_threads = stats.num_threads;
    report.stats = std::move(stats.stats);
    for (size_t n = 0; n < dispatcher_->nodes().size(); ++n) {
      if (dispatcher_->nodes()[n].name != stats.name) continue;
      report.traffic = dispatcher_->traffic()[n];
      report.num_tiles = dispatcher_->placement().num_tiles(n);
    }
    reports.push_back(std::move(report));
  }
  return reports;
}

}  // namespace atl::deployment
