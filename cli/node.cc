// atoll node: one expert node.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/affinity.h"
#include "base/log.h"
#include "base/service_manager.h"
#include "base/thread_team.h"
#include "base/units.h"
#include "cli/cluster_file_option.h"
#include "cli/commands.h"
#include "cli/deployment_options.h"
#include "cli/help_formatter.h"
#include "cli/memory_options.h"
#include "cli/node_looks.h"
#include "cli/numerics.h"
#include "cli/output.h"
#include "cli/stop_signals.h"
#include "cli/thread_options.h"
#include "deployment/cluster_transport.h"
#include "deployment/numerics.h"
#include "expert_node/serve.h"
#include "topology/machine.h"
#include "transport/control/control.h"

namespace atl::cli {
namespace {

struct NodeCommandOptions {
  std::filesystem::path model_dir;
  std::string name = "n0";
  ClusterFileOption cluster_file;
  std::string listen = "127.0.0.1:0";
  std::optional<config::ClusterConfig> cluster;  // what the file says, if there is one
  std::optional<int> control_fd;                 // instead
  std::filesystem::path keys;                    // folder of certificates; "": none
  std::vector<std::string> coordinators = transport::kCoordinatorNames;
  transport::TransportKind transport = transport::TransportKind::kAuto;
  model::NumericsProfile numerics;
  deployment::MemoryOptions memory;
  uint32_t rows_max = 512;
  topology::TeamRequest threads;
  std::vector<int> cpus;  // instead of a plan
  bool spin = false;
  bool mtp = false;
  bool force = false;
};

// The problem with a --listen address, "" if there is none.
std::string check_listen(const std::string& text) {
  const size_t colon = text.rfind(':');
  unsigned port = 0;
  const char* end = text.data() + text.size();
  if (colon == std::string::npos || colon == 0 ||
      std::from_chars(text.data() + colon + 1, end, port) !=
          std::from_chars_result{end, std::errc()} ||
      port > 65535) {
    return fmt::format("'{}' is no address, expected HOST:PORT with a port of 0 to 65535", text);
  }
  return "";
}

// Certificates, or a secret for whoever reads our stdout.
transport::ControlSecurity security_of(const NodeCommandOptions& options) {
  if (options.cluster)
    return deployment::cluster_security(*options.cluster, options.cluster->node(options.name));
  transport::ControlSecurity security;
  security.coordinators = options.coordinators;
  if (!options.keys.empty()) {
    security.keys = transport::TlsKeys::load(options.keys, options.name);
  } else {
    security.secret = transport::random_secret();
  }
  return security;
}

// LoadError names the first of --cpus that this process may not run on, and those that it may.
void check_cpus(const std::vector<int>& cpus) {
  cpu_set_t usable;
  CPU_ZERO(&usable);
  if (sched_getaffinity(0, sizeof usable, &usable) != 0)
    return;  // more than the kernel's set holds
  for (const int cpu : cpus) {
    if (CPU_ISSET(cpu, &usable)) continue;
    std::vector<int> numbers;
    for (int n = 0; n < CPU_SETSIZE; ++n) {
      if (CPU_ISSET(n, &usable)) numbers.push_back(n);
    }
    throw LoadError(
        fmt::format("--cpus: this process may not run on processor {}, expected some of {}", cpu,
                    fmt::join(numbers, ",")));
  }
}

// Where this process runs. Moves it to its NUMA domain, if it has one.
topology::TeamPlan place_threads(const NodeCommandOptions& options) {
  check_cpus(options.cpus);
  topology::TeamPlan plan = plan_threads(options.threads);
  if (options.threads.numa_node) {
    const Status bound = topology::bind_to_numa_node(*options.threads.numa_node);
    if (!bound) log_warn("{}", bound.error().message);
  }
  if (!options.cpus.empty()) {
    plan.num_threads = static_cast<int>(options.cpus.size());
    plan.cpus = options.cpus;
    log_debug("as given: {}", topology::describe(plan));
  }
  return plan;
}

void serve(const NodeCommandOptions& options) {
  std::optional<ServiceManager> service;
  if (!options.control_fd) service.emplace();  // a child's parent is no service manager
  init_log(log_level(), "node " + options.name);
  const transport::ControlSecurity security = security_of(options);
  // First of all: the memory of everything that follows is to come from the domain.
  const topology::TeamPlan threads = place_threads(options);
  const std::unique_ptr<model::OpenedModel> model =
      model::open(options.model_dir, options.memory.stripes,
                  options.mtp ? model::MtpLayers::kFirst : model::MtpLayers::kLeaveOut);
  if (options.mtp && !model->has_mtp) {
    log_info("holds no experts of the next-token layer: {}", model->why_no_mtp);
  }
  const model::NumericsProfile numerics = model->settle(options.numerics);
  StopSignals signals;
  if (!model->config.has_experts()) {
    throw LoadError(fmt::format(
        "{}: a {} model has no routed experts that a node could hold: it runs on the coordinator "
        "alone (atoll run, atoll serve)",
        options.model_dir.string(), model->config.model_type));
  }
  ThreadTeam team(threads.num_threads, threads.cpus);
  expert_node::NodeOptions node_options;
  node_options.name = options.name;
  node_options.identity = deployment::identity_of(*model, numerics);
  node_options.row_type = deployment::wire_row_type(numerics.wire);
  node_options.rows_max = options.rows_max;
  node_options.inspect = [file = options.cluster_file](const std::string& what) {
    return look_at_this_node(what, file);
  };
  deployment::MemoryNeed need;
  need.buffers = expert_node::node_buffer_bytes(node_options, model->catalog, team.num_threads());
  deployment::TileStorePlan plan{options.memory, need.buffers, team.num_threads(), {}};
  need.buffers += deployment::kProgramBytes;
  if (!options.force) {
    plan.admit = [need](uint64_t ram_bytes) {
      deployment::MemoryNeed with_tiles = need;
      with_tiles.experts = ram_bytes;
      deployment::refuse_shortage_of_node(with_tiles, topology::memory_bounds());
    };
  }
  const std::unique_ptr<storage::TileStore> tiles = deployment::open_tiles(*model, numerics, plan);
  if (plan.admit && options.memory.ram_budget) plan.admit(tiles->ram_bytes({}));
  transport::UcxOptions ucx;
  ucx.kind = options.transport;
  ucx.spin = options.spin;
  transport::WireLimits largest;  // what a handshake may agree on at most: FP32 rows
  largest.rows_max = options.rows_max;
  largest.hidden_size = static_cast<uint32_t>(model->catalog.hidden_size);
  largest.top_k = static_cast<uint32_t>(model->catalog.num_experts_per_tok);
  largest.n_routed_experts = static_cast<uint32_t>(model->catalog.n_routed_experts);
  largest.row_type = transport::WireRowType::kF32;
  ucx.message_bytes_max =
      std::max(largest.dispatch_payload_bytes_max(), largest.hint_payload_bytes_max());
  const std::unique_ptr<transport::Transport> transport =
      options.cluster ? deployment::make_cluster_transport(
                            *options.cluster, options.cluster->node(options.name), security,
                            ucx.message_bytes_max, options.spin)
                      : transport::make_ucx_transport(ucx);

  expert_node::ExpertNode node(node_options, team, *tiles, *transport);
  const std::unique_ptr<transport::ControlServer> control =
      options.control_fd ? transport::serve_control_over(*options.control_fd, node)
                         : transport::serve_control(options.listen, security, node);
  if (!options.control_fd) {
    const std::string host = options.listen.substr(0, options.listen.rfind(':'));
    std::string line = fmt::format("listening {}:{}", host, control->port());
    if (!security.keys && !options.cluster) line += " secret " + security.secret;
    write_stdout(line + "\n");
    service->tell_ready(fmt::format("waits for a coordinator on {}:{}", host, control->port()));
  }
  signals.watch([&node, &service] {
    if (service) service->tell_stopping();
    node.stop();
  });
  const std::unique_ptr<ScopedThreadPin> pin = team.pin_caller();  // all other threads are there
  node.serve_until_stopped([&service] {
    if (service) service->tell_alive();
  });
  tiles->save_usage();
}

// What the cluster file says of this node, where the command line says nothing.
void take_cluster_file(const CLI::App& command, NodeCommandOptions* options) {
  if (!options->cluster_file.is_given()) {
    if (!options->cluster_file.flags.empty()) throw CLI::RequiresError("--set", "--config");
    if (command.count("model_dir") == 0) throw CLI::RequiredError("model_dir, or --config,");
    return;
  }
  if (command.count("--name") == 0) throw CLI::RequiresError("--config", "--name");
  options->cluster_file.node = options->name;
  options->cluster = options->cluster_file.load();
  const config::ClusterConfig& config = *options->cluster;
  config::require_built(config);
  const config::NodeConfig* node = config.node(options->name);
  if (node == nullptr) {
    std::vector<std::string> names;
    for (const config::NodeConfig& other : config.nodes) names.push_back(other.name);
    throw LoadError(fmt::format(
        "{}: no node '{}': expected one of {}", config.file.filename().string(), options->name,
        names.empty() ? "none: the file has no nodes" : fmt::format("{}", fmt::join(names, ", "))));
  }
  const auto is_open = [&](const char* option) { return command.count(option) == 0; };
  if (is_open("model_dir")) {
    options->model_dir = node->model;
    if (is_open("--stripe")) options->memory.stripes = node->stripes;
  }
  take_numerics(config.numerics, command, &options->numerics);
  if (is_open("--ram-budget")) options->memory.ram_budget = node->ram_bytes;
  if (is_open("--rows-max")) options->rows_max = static_cast<uint32_t>(config.coordinator.rows_max);
  if (is_open("--threads")) options->threads.num_threads = node->threads;
  if (is_open("--numa-node")) options->threads.numa_node = node->numa_node;
  options->listen = node->control.text();
  const std::string& draft = config.coordinator.draft;
  if (draft == "mtp" || draft == "auto") options->mtp = true;
}

}  // namespace

void add_node_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<NodeCommandOptions>();
  CLI::App* command = app.add_subcommand(
      "node", "An expert node: keeps tiles of every expert and computes what a coordinator asks");
  command
      ->add_option("model_dir", options->model_dir,
                   "Checkpoint directory (Hugging Face layout), GGUF file or expert pack; the "
                   "cluster file's "
                   "unless given")
      ->type_name("MODEL_DIR");
  options->cluster_file.add_config_option(*command);
  command
      ->add_option("--name", options->name,
                   "Name in logs and reports; with --config which node of the file this is")
      ->capture_default_str();
  command
      ->add_option("--listen", options->listen,
                   "Address of the control port, HOST:PORT; port 0: any free one, told on stdout")
      ->check(check_listen)
      ->excludes("--config")
      ->capture_default_str();
  command
      ->add_option("--control-fd", options->control_fd,
                   "Inherited descriptor of a connected socket to be controlled over, instead of a "
                   "port; the node ends with that connection")
      ->check(CLI::Range(3, 1 << 20))
      ->type_name("N")
      ->excludes("--listen", "--config");
  command
      ->add_option("--keys", options->keys,
                   "Folder with ca.pem, NAME.pem and NAME.key ('atoll keys' makes them): control "
                   "over TLS, with certificates from both sides. Without it the node listens on "
                   "loopback only")
      ->type_name("DIR")
      ->excludes("--control-fd", "--config");
  command
      ->add_option("--coordinators", options->coordinators,
                   "Names of the coordinators that may command this node; with --keys")
      ->delimiter(',')
      ->needs("--keys")
      ->type_name("NAME,NAME,...")
      ->capture_default_str();
  add_transport_option(*command, &options->transport);
  command->get_option("--transport")->excludes("--config");
  add_numerics_options(*command, &options->numerics);
  add_threads_option(*command, "Compute threads", &options->threads.num_threads);
  add_pin_option(*command, &options->threads.pin);
  command
      ->add_option("--cpus", options->cpus,
                   "Processors (the kernel's numbers) to keep one compute thread on each")
      ->delimiter(',')
      ->check(CLI::Range(0, CPU_SETSIZE - 1))
      ->type_name("N,N,...")
      ->excludes("--threads", "--pin");
  command
      ->add_option("--numa-node", options->threads.numa_node,
                   "NUMA domain to run in, with all memory from it (the kernel's number)")
      ->check(CLI::Range(0, 1 << 16))
      ->type_name("K");
  add_memory_options(*command, &options->memory);
  command
      ->add_option("--rows-max", options->rows_max,
                   "Most rows of one dispatch that this node takes; it reserves room for them")
      ->check(CLI::Range(uint32_t{1}, transport::kDispatchRowsMax))
      ->capture_default_str();
  add_force_option(*command, &options->force);
  command->add_flag("--spin", options->spin,
                    "Wait by spinning for a while: only if every thread has a core of its own");
  command->add_flag("--mtp", options->mtp,
                    "Hold the experts of the model's next-token layer, too: for coordinators with "
                    "--draft mtp or auto. A cluster file's `draft` says so by itself");
  group_options(*command, "Nodes and threads",
                {"--config", "--set", "--name", "--listen", "--keys", "--coordinators",
                 "--transport", "--threads", "--pin", "--cpus", "--numa-node", "--rows-max",
                 "--spin", "--mtp", "--control-fd"});
  group_options(*command, "Memory", {"--force"});
  command->footer(
      "Example:\n  atoll node tests/models/tiny-fp8 --name n1 --listen 127.0.0.1:7001\n"
      "  atoll node MODEL_DIR --name n1 --listen 10.0.0.1:7001 --keys keys\n"
      "  atoll node --config cluster.yaml --name n1\n"
      "\nThe first line on stdout is 'listening HOST:PORT' once a coordinator may dial; without "
      "--keys\nand --config ' secret SECRET' follows, which it has to know. With --config it is in "
      "the file\nsecurity.secret_file.");
  command->callback([options, exit_code, command] {
    take_cluster_file(*command, options.get());
    const std::string host = options->listen.substr(0, options->listen.rfind(':'));
    if (!options->cluster && options->keys.empty() && !transport::is_loopback(host)) {
      throw CLI::ValidationError(
          "--listen",
          fmt::format("'{}' can be reached from other machines, and without --keys anybody could "
                      "command this node: expected an address of this machine alone, 127.x.x.x, "
                      "[::1] or localhost, or --keys DIR ('atoll keys' makes them)",
                      options->listen));
    }
    serve(*options);
    *exit_code = 0;
  });
}

}  // namespace atl::cli
