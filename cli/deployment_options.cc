#include "cli/deployment_options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/cluster_file_option.h"
#include "cli/help_formatter.h"
#include "cli/memory_options.h"
#include "cli/numerics.h"
#include "cli/progress_bar.h"
#include "cli/thread_options.h"

namespace atl::cli {

void add_transport_option(CLI::App& command, transport::TransportKind* kind) {
  command
      .add_option_function<std::string>(
          "--transport",
          [kind](const std::string& name) {
            *kind = name == "shm"   ? transport::TransportKind::kShm
                    : name == "tcp" ? transport::TransportKind::kTcp
                                    : transport::TransportKind::kAuto;
          },
          "Link of coordinator and nodes: shm (shared memory), tcp or auto, which is shm with "
          "child "
          "nodes; auto unless given")
      ->check(CLI::IsMember({"auto", "shm", "tcp"}))
      ->type_name("auto|shm|tcp");
}

namespace {

// What the cluster file says, where the command line says nothing.
void take_cluster_file(const CLI::App& command, const ClusterFileOption& file,
                       deployment::DeploymentOptions* options) {
  if (!file.is_given()) {
    if (!file.flags.empty()) throw CLI::RequiresError("--set", "--config");
    if (!file.coordinator.empty()) throw CLI::RequiresError("--coordinator", "--config");
    if (command.count("model_dir") == 0) throw CLI::RequiredError("model_dir, or --config,");
    return;
  }
  options->cluster = file.load_for_coordinator();
  const config::ClusterConfig& config = *options->cluster;
  config::require_built(config);
  const auto is_open = [&](const char* option) { return command.count(option) == 0; };
  if (is_open("model_dir")) {
    options->model_dir = config.model;
    if (is_open("--stripe")) options->memory.stripes = config.stripes;
  }
  take_numerics(config.numerics, command, &options->numerics);
  if (is_open("--redundancy")) options->redundancy = config.redundancy;
  if (is_open("--hedging")) options->hedging = config.hedging;
  if (is_open("--balance")) options->balance = config.balance;
  if (is_open("--threads")) options->threads = config.coordinator.threads;
  if (is_open("--device")) options->device = config.coordinator.device;
  if (is_open("--chunk")) options->rows_max = config.coordinator.rows_max;
}

}  // namespace

void add_deployment_options(CLI::App& command, deployment::DeploymentOptions* options) {
  command
      .add_option("model_dir", options->model_dir,
                  "Checkpoint directory (Hugging Face layout), GGUF file or expert pack; the "
                  "cluster file's "
                  "unless given")
      ->type_name("MODEL_DIR");
  const auto file = std::make_shared<ClusterFileOption>();
  file->add_config_option(command);
  file->add_coordinator_option(command);
  options->progress = draw_progress;
  command
      .add_option("--min-coverage", options->min_coverage,
                  "Share of the tiles whose nodes have to be there before it begins, of a cluster "
                  "file's nodes; others read what is missing from their copies")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command.parse_complete_callback([&command, file, options] {
    take_cluster_file(command, *file, options);
    if (file->is_given()) options->read_cluster_file = [file] { return file->settings(); };
  });
  command
      .add_option("--nodes", options->nodes,
                  "Expert nodes to start as child processes; 0: experts in this process")
      ->check(CLI::Range(0, deployment::kNodesMax))
      ->capture_default_str();
  command
      .add_option("--tiles", options->tile_counts,
                  "Tiles of each node, such as 7,5,3,1; equal shares unless given")
      ->delimiter(',')
      ->check(CLI::Range(0, 65535));
  command
      .add_option("--redundancy", options->redundancy,
                  "Nodes that keep each tile in RAM, where there is room: a lost node's tiles are "
                  "asked from others at once")
      ->check(CLI::Range(1, 8))
      ->capture_default_str();
  const auto add_choice = [&](const char* name, config::Choice* choice, const char* about) {
    command
        .add_option_function<std::string>(
            name, [choice](const std::string& text) { *choice = config::parse_choice(text); },
            about)
        ->check(CLI::IsMember({"auto", "on", "off"}))
        ->type_name("auto|on|off");
  };
  add_choice("--hedging", &options->hedging,
             "Ask others, too, for what a node is late with; auto: with --redundancy, of a cluster "
             "file's nodes; auto unless given");
  add_choice("--balance", &options->balance,
             "Move tiles from nodes that have become slow to others, and back; auto: of a cluster "
             "file's nodes; auto unless given");
  add_transport_option(command, &options->transport);
  add_numerics_options(command, &options->numerics);
  add_threads_option(command, "Threads of the coordinator", &options->threads);
  add_pin_option(command, &options->pin);
  command
      .add_option("--device", options->device,
                  "What the coordinator computes on: auto (a GPU if there is one), cpu, cuda:N")
      ->check(CLI::Validator(
          [](const std::string& text) {
            const bool known = text == "auto" || text == "cpu" ||
                               (text.starts_with("cuda:") && text.size() > 5 && text.size() <= 8 &&
                                text.find_first_not_of("0123456789", 5) == std::string::npos);
            return known ? "" : fmt::format("{}: expected auto, cpu or cuda:N", text);
          },
          "DEVICE"))
      ->capture_default_str();
  command
      .add_option("--chunk", options->rows_max,
                  "Tokens per step of prefill (and rows per dispatch)")
      ->check(CLI::Range(uint32_t{1}, transport::kDispatchRowsMax))
      ->capture_default_str();
  add_memory_options(command, &options->memory);
  add_force_option(command, &options->force);
  command
      .add_option_function<std::string>(
          "--prefetch",
          [options](const std::string& text) {
            options->prefetch =
                text == "off" ? coordinator::Prefetch::kOff : coordinator::Prefetch::kNextLayer;
          },
          "Foretell the next layer's experts, so that nodes read missing ones ahead: off or "
          "next-layer (in steps of up to 16 rows); off unless given")
      ->check(CLI::IsMember({"off", "next-layer"}))
      ->type_name("off|next-layer");
  command
      .add_option_function<std::string>(
          "--halves",
          [options](const std::string& text) {
            using coordinator::Halves;
            options->halves = text == "off"  ? Halves::kOff
                              : text == "on" ? Halves::kOn
                                             : Halves::kAuto;
          },
          "Compute a step's rows as two halves, so that the nodes compute the experts of one while "
          "attention is computed for the other: auto (where it is measured to be faster), on or "
          "off; auto unless given. Results are the same")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->type_name("auto|on|off");
  group_options(command, "Nodes and threads",
                {"--config", "--set", "--coordinator", "--min-coverage", "--nodes", "--tiles",
                 "--redundancy", "--hedging", "--balance", "--transport", "--threads", "--pin",
                 "--chunk", "--halves", "--device"});
  group_options(command, "Memory", {"--prefetch", "--force"});
}

void add_force_option(CLI::App& command, bool* force) {
  command.add_flag("--force", *force,
                   "Load even if this machine's memory does not seem to suffice");
}

void add_cold_start_option(CLI::App& command, bool* cold) {
  command.add_flag("--cold-start", *cold,
                   "Begin while experts that are to stay in RAM are still being read");
}

}  // namespace atl::cli
